"""The demo's folder: a configuration that loads, a base model that plain transformers uses, rows that raymix reads."""

import json
import re
from pathlib import Path

import pytest
import torch

from orchestrator.cli.demo.driver import demo_prompts, write_demo
from orchestrator.cli.demo.model import answers_table, generate_answers
from orchestrator.config.load import load_config
from orchestrator.config.sweep import SweepConfig
from workers.data.formats.example import Example
from workers.data.templates import Tokens, tokenize_examples
from workers.model.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    # A folder with a name that YAML would trip over.
    return load_config(write_demo(tmp_path_factory.mktemp("demo") / "a, b: {c} #1"))


def test_the_configuration_names_files_that_are_there(config: SweepConfig) -> None:
    assert config.mixing.type == "versatune"
    assert config.cluster.num_workers == 2
    for domain in config.domains.values():
        assert all(path.stat().st_size > 0 for path in [*domain.train, *domain.eval])


def test_a_second_call_leaves_everything_as_it_is(config: SweepConfig) -> None:
    folder = Path(config.model.path).parent
    files = [path for path in folder.rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    assert write_demo(folder) == folder / "config.yaml"
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before


def test_the_base_model_is_the_same_every_time(config: SweepConfig, tmp_path: Path) -> None:
    torch.manual_seed(1234)  # whatever the process drew before
    write_demo(tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / "base" / name).read_bytes() == (Path(config.model.path) / name).read_bytes()


def test_every_row_fits_and_only_answers_are_learned(config: SweepConfig) -> None:
    tokenizer = load_tokenizer(config.model)
    for name, domain in config.domains.items():
        rows = [json.loads(line)["messages"] for line in domain.train[0].read_text().splitlines()][:100]
        for row, tokens in zip(
            rows, tokenize_examples(tokenizer, [Example(1, tuple(row)) for row in rows]), strict=True
        ):
            assert isinstance(tokens, Tokens), (name, tokens)
            assert len(tokens.input_ids) <= config.data.max_length / 2, name
            learned = tokenizer.decode(tokens.input_ids[tokens.loss_mask].tolist())
            assert learned == row[1]["content"] + tokenizer.eos_token


def test_digits_are_tokens_of_their_own(config: SweepConfig) -> None:
    tokens = load_tokenizer(config.model).tokenize("What is 47+33?")
    assert [token for token in tokens if re.search(r"\d", token)] == ["4", "7", "3", "3"]


def test_plain_transformers_answers_the_prompts(config: SweepConfig) -> None:
    prompts = demo_prompts()
    assert [domain for domain, _ in prompts] == list(config.domains)
    for domain, prompt in prompts:
        assert json.dumps(prompt) in config.domains[domain].eval[0].read_text()
        assert json.dumps(prompt) not in config.domains[domain].train[0].read_text()
    answers = generate_answers(Path(config.model.path), [prompt for _, prompt in prompts])
    assert len(answers) == len(prompts)
    assert answers_table(prompts, answers, answers).row_count == len(prompts)
