"""Every fault of a configuration is one line with place, key, what was found and what to change."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
from orchestrator.config.sweep import SweepConfig
from orchestrator.mixing.mixture_of_skills import MixtureOfSkillsConfig

# ruff: noqa: E501  a table of messages as they are

ROOT = Path(__file__).parents[3]
GOOD = """\
name: a
model: {path: Qwen/Qwen2.5-0.5B}
domains:
  math: {train: m.jsonl}
  code: {train: c.jsonl}
mixing: {type: uniform}
training: {max_steps: 10}
"""


def fault(folder: Path, text: str, *overrides: str, check_files: bool = False) -> list[str]:
    path = folder / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides, check_files)
    assert all("\n" not in line for line in error.value.lines)
    return [line.replace(f"{folder}/", "") for line in error.value.lines]


def test_a_signal_that_workers_cannot_measure_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GOOD.replace("type: uniform", "type: mixture_of_skills")
    monkeypatch.setattr(MixtureOfSkillsConfig, "required_signals", ("perplexity_ratio", "gradient_norm"))
    (line,) = fault(tmp_path, text)
    assert line.startswith("run.yaml:6: mixing.type: mixture_of_skills: signal 'gradient_norm' is not known; known: ")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("max_steps", "max_step", "run.yaml:7: training.max_step: unknown key; did you mean 'max_steps'?"),
        ("name: a", "nmae: a\nname: b", "run.yaml:1: nmae: unknown key; did you mean 'name'?"),
        ("name: a", "name: a\nzero_stage: 1", "run.yaml:2: zero_stage: unknown key here; it belongs at training.deepspeed.zero_stage"),
        ("{train: m", "{micro_batch_size: 1, train: m", "run.yaml:4: domains.math.micro_batch_size: unknown key here; it belongs at training.micro_batch_size"),
        ("max_steps: 10", "max_steps: ten", "run.yaml:7: training.max_steps: is 'ten'; input should be a valid integer"),
        ("max_steps: 10", "max_steps: -3", "run.yaml:7: training.max_steps: is -3; input should be greater than or equal to 1"),
        ("max_steps: 10", "max_steps: 10, epochs: 2", "run.yaml:7: training: give exactly one of max_steps"),
        ("max_steps: 10", "seed: 1", "belongs at seed"),
        ("{max_steps: 10}", "{}", "run.yaml:7: training: give exactly one of max_steps"),
        ("max_steps: 10", "max_steps: 10, learning_rate: .nan", "run.yaml:7: training.learning_rate: is nan; give a finite number"),
        ("max_steps: 10", "max_steps: 10, learning_rate: -1.0", "training.learning_rate: is -1.0; input should be greater than 0"),
        ("max_steps: 10", "max_steps: 10, global_batch_size: 10", "global_batch_size 10 is not a multiple of micro_batch_size 4"),
        ("name: a", "name: a\ncluster: {num_workers: 3}", "run.yaml:8: training.global_batch_size: 128 is not divisible by cluster.num_workers 3 x training.micro_batch_size 4 = 12; use for example 120"),
        ("name: a", "name: a\ncluster: {num_workers: {min: 3, max: 8}}", "run.yaml:8: training.global_batch_size: 128 is not divisible by cluster.num_workers.min 3 x training.micro_batch_size 4 = 12"),
        ("name: a", "name: a\ncluster: {num_workers: {min: 4, max: 4}}", "run.yaml:2: cluster.num_workers: max 4 is not above min 4; raise max, or give one number: 4"),
        ("name: a", "name: a\ncluster: {num_workers: {min: 0, max: 4}}", "run.yaml:2: cluster.num_workers.min: is 0; input should be greater than or equal to 1"),
        ("name: a", "name: a\ncluster: {num_workers: {mni: 1, max: 4}}", "run.yaml:2: cluster.num_workers.mni: unknown key; did you mean 'min'?"),
        ("name: a", "name: a\ncluster: {num_workers: 0}", "run.yaml:2: cluster.num_workers: is 0; input should be greater than or equal to 1"),
        ("name: a", "name: a\ncluster: {num_workers: four}", "run.yaml:2: cluster.num_workers: is 'four'; input should be a valid integer"),
        ("name: a\n", "", "run.yaml:1: name: is missing; give it a value"),
        ("name: a", "name: ../a", "run.yaml:1: name: is '../a'"),
        ("name: a", "name: a\noutput_dir: file:///x", "run.yaml:2: output_dir: file:///x: is on a file system; give the path without file://"),
        ("name: a", "name: a\noutput_dir: s3://key:word@bucket/x", "run.yaml:2: output_dir: s3://...@bucket: has credentials in it"),
        ("type: uniform", "type: versatone", "run.yaml:6: mixing.type: 'versatone' is not known; did you mean 'versatune'?"),
        ("type: uniform", "type: uniform, reference: computed", "run.yaml:6: mixing.reference: is not a key of uniform; known here: type, unit"),
        ("type: uniform", "tau: 3.0", "run.yaml:6: mixing: has no `type`"),
        ("type: uniform", "type: fixed, shares: {math: 0.5, code: 0.6}", "run.yaml:6: mixing.shares: shares sum to 1.1, not to 1; divide each by 1.1"),
        ("type: uniform", "type: fixed, shares: {math: .nan, code: 1.0}", "run.yaml:6: mixing.shares.math: is nan; give a finite number"),
        ("type: uniform", "type: fixed, shares: {math: -0.5, code: 1.5}", "run.yaml:6: mixing.shares.math: is -0.5; input should be greater than or equal to 0"),
        ("type: uniform", "type: fixed, shares: {math: 1.0}", "run.yaml:6: mixing.shares: no value for ['code']; give one for each of ['math', 'code']"),
        ("type: uniform", "type: versatune, floor: 0.6", "run.yaml:6: mixing.floor: 0.6 for 2 domains adds up to more than 1; use at most 0.5"),
        ("type: uniform", "type: versatune, reference: {math: -1.0, code: 1.0}", "run.yaml:6: mixing.reference.math: is -1.0; input should be greater"),
        ("{train: m.jsonl}", "{train: m.jsonl, hub: {path: a/b}}", "run.yaml:4: domains.math: give either `train` (files) or `hub`"),
        ("{train: m.jsonl}", "{}", "run.yaml:4: domains.math: give `train` (files) or `hub`"),
        ("{train: m.jsonl}", "{eval: e.jsonl, hub: {path: a/b}}", "use hub.eval_split"),
        ("name: a", "name: a\nevaluation: {best: maths}", "run.yaml:2: evaluation.best: 'maths' is not mean, worst, or one of ['math', 'code']"),
        ("name: a", "name: a\nname: b", "run.yaml:2: name: duplicate key (first defined on line 1); remove one"),
        ("type: uniform", "type: uniform, type: fixed", "run.yaml:6: mixing.type: duplicate key (first defined on line 6)"),
        ("name: a", "name: a\n7: x", "run.yaml:2: 7: YAML reads this key as 7; put it in quotes"),
        ("name: a", "name: a\n? [x]\n: y", "run.yaml:2:"),
        ("name: a", "name: 2026-13-45", "run.yaml:1: name: '2026-13-45' cannot be read (month must be in 1..12); put it in quotes"),
        ("name: a", "name: [a", "run.yaml:2: not valid YAML"),
        ("name: a", "name: a\ndata:", "run.yaml:2: data: is None"),
    ],
)  # fmt: skip
def test_one_clear_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in GOOD
    lines = fault(tmp_path, GOOD.replace(old, new, 1))
    assert any(line in found for found in lines), lines
    assert len(lines) <= 2, lines


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("max_steps: 10", "max_steps: 0, sede: 1").replace("name: a", "name: ''")
    assert len(fault(tmp_path, text)) == 3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.max_steps", "--set training.max_steps: write it as key.path=value"),
        ("=3", "write it as key.path=value"),
        ("training..max_steps=3", "write it as key.path=value"),
        ("name.x=3", "--set name.x=3: 'name' is 'a', not a group of keys"),
        ("seed=[", "'[' is not a YAML value; put it in quotes"),
        ("seed=2026-99-99", "is not a YAML value; put it in quotes"),
        ("seed=!!python/object/apply:os.getcwd []", "is not a YAML value"),
        ("training.max_steps=0", "--set training.max_steps=0: is 0; input should be greater than or equal to 1"),
        ("training.max_stepz=1", "--set training.max_stepz=1: unknown key; did you mean 'max_steps'?"),
    ],
)
def test_overrides(tmp_path: Path, override: str, line: str) -> None:
    assert line in fault(tmp_path, GOOD, override)[0]


def test_overrides_are_applied_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    sets = ["seed=4", "mixing={type: versatune}", "mixing.sigma=1e-2", "data.packing=false"]
    config = load_config(path, sets, check_files=False)
    assert (config.seed, config.mixing.type, config.data.packing) == (4, "versatune", False)
    assert getattr(config.mixing, "sigma", None) == 0.01


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = GOOD.replace("{train: m.jsonl}", "&m {train: m.jsonl, format: alpaca}")
    path.write_text(text.replace("{train: c.jsonl}", "{<<: *m, train: c.jsonl}"))
    domains = load_config(path, check_files=False).domains
    assert (domains["code"].train, domains["code"].format) == ([Path("c.jsonl")], "alpaca")
    path.write_text(text.replace("{train: c.jsonl}", "{<<: *m, fromat: text}"))
    assert ":5: domains.code.fromat: unknown key" in fault(tmp_path, path.read_text())[0]


def test_missing_and_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").touch()
    (tmp_path / "folder").mkdir()
    text = GOOD.replace("Qwen/Qwen2.5-0.5B", "./nowhere") + "  \n"
    lines = fault(tmp_path, text.replace("{train: c.jsonl}", "{train: [c.jsonl, folder]}"), check_files=True)
    assert [line.split(": ")[1] for line in lines] == [
        "domains.math.train[0]", "domains.code.train[0]", "domains.code.train[1]", "model.path"
    ]  # fmt: skip
    assert "m.jsonl: is empty" in lines[0] and "c.jsonl: no such file" in lines[1] and "file in this folder" in lines[2]


def test_a_file_that_cannot_be_read_as_a_configuration(tmp_path: Path) -> None:
    assert fault(tmp_path, "") == ["run.yaml: is empty; `raymix schema` shows what a configuration contains"]
    assert "must be a mapping of keys" in fault(tmp_path, "- a\n- b")[0]
    (tmp_path / "latin.yaml").write_bytes("name: ä".encode("latin-1"))
    for path, what in (("latin.yaml", "not UTF-8 at byte 6"), ("none.yaml", "No such file"), (".", "is a folder")):
        with pytest.raises(ConfigError, match=what):
            load_config(tmp_path / path)


def test_the_command_says_it_in_a_line_and_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace("max_steps", "max_step"))
    code = (
        "import sys; from orchestrator.cli.main import app\n"
        "try: app(['run', sys.argv[1]])\n"
        "finally: print([m for m in ('ray', 'torch', 'transformers', 'deepspeed') if m in sys.modules])"
    )
    before = os.times()
    command = [sys.executable, "-m", "orchestrator.cli.main", "run", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and "did you mean 'max_steps'?" in done.stderr
    assert done.stderr.count("\n") == 1
    assert seconds < 3  # of a core, whatever else the machine does; about 0.7
    command = [sys.executable, "-c", code, str(path)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.stdout.strip() == "[]" and again.returncode == 2


def test_the_schema_accepts_what_is_good_and_refuses_an_unknown_key() -> None:
    schema = SweepConfig.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    data = yaml.safe_load(GOOD)
    jsonschema.validate(data | {"training": {"max_steps": 1, "deepspeed": "ds.json"}}, schema)
    jsonschema.validate(data, schema)
    jsonschema.validate(json.loads(SweepConfig.model_validate(data).model_dump_json()), schema)
    for group in (data, data["training"], data["mixing"], data["domains"]["math"]):
        group["unknown_key"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, schema)
        del group["unknown_key"]


def test_the_command_prints_the_schema_with_a_sentence_for_every_key() -> None:
    command = [sys.executable, "-m", "orchestrator.cli.main", "schema"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    schema = json.loads(done.stdout)
    assert schema == SweepConfig.model_json_schema() and done.stderr == ""
    groups = {"RunConfig": schema, **schema["$defs"]}
    keys = {f"{name}.{key}": about for name, group in groups.items() for key, about in group["properties"].items()}

    def explain(about: dict[str, str]) -> str | None:
        """Its own sentence, or that of the group that it stands for."""
        group = groups.get(about.get("$ref", "").removeprefix("#/$defs/"), {})
        return about.get("description") or group.get("description")

    assert keys["RunConfig.seed"]["description"] == "Seed of all random choices."
    assert [key for key, about in keys.items() if not explain(about)] == []


def test_files_without_a_row_are_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "notes.txt").write_text("x")
    files = ", ".join(str(tmp_path / name) for name in ("blank.jsonl", "packed.jsonl.gz", "notes.txt"))
    lines = fault(tmp_path, GOOD.replace("m.jsonl", f"[{files}]", 1), check_files=True)
    assert "blank.jsonl: has no rows" in lines[0] and "packed.jsonl.gz: has no rows" in lines[1]
    assert "notes.txt: not a .jsonl" in lines[2]
