"""`--set`: what it changes, and that a wrong one is told as it was typed, with the nearest name."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
from orchestrator.config.sweep import SweepConfig

# ruff: noqa: E501  a table of messages as they are

FILE = """\
name: a
model: {path: someone/model}
domains:
  finance: {train: m.jsonl}
  code: {train: [c.jsonl, d.jsonl]}
  gpt-4.5: {train: e.jsonl, fields: {prompt: q}}
mixing: {type: versatune}
training: {max_steps: 10}
tracking: [mlflow, {type: wandb, project: p}]
stages: [{name: one, learning_rate: 1.0e-4}, {name: two}]
compare: {variants: {low: {training.learning_rate: 1.0e-5}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


def value_at(config: SweepConfig, path: str) -> Any:
    found: Any = config
    for part in path.split("/"):
        found = (
            found[int(part)]
            if isinstance(found, list)
            else found[part]
            if isinstance(found, dict)
            else getattr(found, part)
        )
    return found


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("domains.finance.fraction=0.5", "domains/finance/fraction", 0.5),
        ("domains.gpt-4.5.fraction=0.25", "domains/gpt-4.5/fraction", 0.25),
        ("domains.gpt-4.5.fields.prompt=ask", "domains/gpt-4.5/fields/prompt", "ask"),
        ("domains.finance.fields.prompt=ask", "domains/finance/fields", {"prompt": "ask"}),
        ("domains.code.train[1]=z.jsonl", "domains/code/train", [Path("c.jsonl"), Path("z.jsonl")]),
        ("domains.code.train.0=z.jsonl", "domains/code/train", [Path("z.jsonl"), Path("d.jsonl")]),
        ("stages[0].learning_rate=0.5", "stages/0/learning_rate", 0.5),
        ("stages.1.max_steps=7", "stages/1/max_steps", 7),
        ("tracking[1].project=q", "tracking/1/project", "q"),
        ("training.max_steps =5", "training/max_steps", 5),
        ("evaluation.best=null", "evaluation/best", None),
        ("cluster.runtime_env.env_vars.A=b", "cluster/runtime_env", {"env_vars": {"A": "b"}}),
        ("compare.variants.high.training.learning_rate=1.0", "compare/variants/high", {"training": {"learning_rate": 1.0}}),
    ],
)  # fmt: skip
def test_it_sets_a_key_a_domain_s_key_or_a_place_in_a_list(file: Path, override: str, path: str, value: Any) -> None:
    assert value_at(load_config(file, [override], check_files=False), path) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("domains.finanse.fraction=0.5", "there is no domain 'finanse'; did you mean 'finance'?"),
        ("domains.finanse={train: x.jsonl}", "there is no domain 'finanse'; did you mean 'finance'?"),
        ("domains.Finance.count=3", "did you mean 'finance'?"),
        ("domains.gpt-4.6.fraction=0.5", "there is no domain 'gpt-4'; did you mean 'gpt-4.5'?"),
        ("domains.qqq.count=3", "there is no domain 'qqq'; its domains are: finance, code, gpt-4.5"),
        ("trainig.max_steps=3", "trainig: unknown key; did you mean 'training'?"),
        ("training.max_stpes=3", "unknown key; did you mean 'max_steps'?"),
        ("training.max-steps=3", "unknown key; did you mean 'max_steps'?"),
        ("training.deepspeed.zero_stge=1", "unknown key; did you mean 'zero_stage'?"),
        ("training.strategy={type: lora, rnak: 3}", "training.strategy.rnak: unknown key; did you mean 'rank'?"),
        ("training.strategy.type=lorra", "--set training.strategy.type=lorra: 'lorra' is not known; did you mean 'lora'?"),
        ("mixing.sigmaa=1", "unknown key; did you mean 'sigma'?"),
        ("tracking[1].projct=x", "unknown key; did you mean 'project'?"),
        ("tracking[0]=tensorbord", "tracking[0].type: 'tensorbord' is not known; did you mean 'tensorboard'?"),
        ("stages.0.learning_rat=1", "stages[0].learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("stages[5].learning_rate=1", "stages has 2 entries, counted from 0; to add more, set the whole list"),
        ("stages.one.learning_rate=1", "stages is a list; give an index: stages[0] to stages[1]"),
        ("training[0]=1", "training is a group of keys, not a list; name one of them"),
        ("training.betas[0]=0.5", "training.betas is not in the file, so it has no entry 0; set all of it"),
        ("domains.finance.train[0]=x", "'domains.finance.train' is 'm.jsonl', not a list"),
        ("compare.variants.low.training.learning_rat=1", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("fraction=0.3", "unknown key here; it belongs at domains.NAME.fraction"),
        ("max_steps=3", "unknown key here; it belongs at training.max_steps or reference.max_steps or stages.max_steps or study.max_steps"),
        ("training=5", "is 5; give a group of keys: max_steps, epochs,"),
        ("model=foo", "is 'foo'; give a group of keys: path, revision,"),
        ("training.max_steps=ten", "is 'ten'; input should be a valid integer"),
        ("training.max_steps=1.5", "is 1.5; input should be a valid integer"),
        ("evaluation.max_rows=al", "is 'al'; input should be a valid integer, unable to parse string as an integer, or it must be 'all'"),
        ("evaluation.max_rows=0", "is 0; input should be greater than or equal to 1, or it must be 'all'"),
        ("name=123", "is 123, which YAML reads as a number; put it in quotes"),
        ("name=yes", "is True, which YAML reads as yes or no; put it in quotes"),
        ("output_dir=", "has no value after `=`; give one"),
        ("stages[0=3", "write it as key.path=value"),
        ("evaluation.best=finanse", "is not mean, worst, or one of ['finance', 'code', 'gpt-4.5'] (did you mean 'finance'?)"),
    ],
)  # fmt: skip
def test_a_wrong_one_is_one_line_that_begins_as_it_was_typed(file: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(file, [override], check_files=False)
    (line,) = error.value.lines
    assert line.startswith(f"--set {override}: ") and words in line


@pytest.mark.parametrize(
    "pair", [("seed=3", "seed=4"), ("mixing.sigma=0.3", "mixing={type: uniform}"), ("stages.0.max_steps=1", "stages[0].max_steps=1")]
)  # fmt: skip
def test_a_key_that_is_set_twice_is_refused(file: Path, pair: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"is already set by --set .*; keep one of them"):
        load_config(file, pair, check_files=False)


def test_a_group_can_be_set_and_then_a_key_of_it(file: Path) -> None:
    config = load_config(file, ["mixing={type: versatune, sigma: 0.1}", "mixing.sigma=0.2"], check_files=False)
    assert getattr(config.mixing, "sigma", None) == 0.2


def test_a_fault_of_the_file_keeps_its_line(file: Path) -> None:
    file.write_text(FILE.replace("max_steps", "max_stpes"))
    with pytest.raises(ConfigError) as error:
        load_config(file, ["seed=3"], check_files=False)
    assert error.value.lines[0].startswith(f"{file}:8: training.max_stpes: unknown key; did you mean 'max_steps'?")
