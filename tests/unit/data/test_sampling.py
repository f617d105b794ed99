"""Which examples a domain trains on: fractions, counts, exclusions, and domains that are only measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
from workers.data.preparing import Sample, check_sides, fingerprint_tokenizer, pack_side, plan_domain
from workers.data.report import Report
from workers.data.store import TokenStore
from workers.data.tokenization import tokenize_shard
from workers.model.tokenizer import load_tokenizer

DATA = DataConfig(max_length=64, packing=False)


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    return load_tokenizer(ModelConfig(path=str(tokenizer_folder)))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = [
        {
            "prompt": f"question {n}",
            "completion": "a Python script" if n % 4 == 0 else "x" * (n % 7 + 1),
            "tags": ["a", f"t{n % 5}"],
            "level": "hard" if n % 10 == 0 else "easy",
        }
        for n in range(100)
    ]
    paths = {"train": tmp_path / "train.jsonl", "eval": tmp_path / "eval.jsonl"}
    for name, part in (("train", rows), ("eval", rows[:8])):
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in part))
    return paths


def build(tokenizer: Any, folder: Path, data: DataConfig = DATA, **settings: Any) -> dict[str, TokenStore]:
    folder.mkdir()
    plan = plan_domain("math", DomainConfig(**settings), data, fingerprint_tokenizer(tokenizer))
    shards = [tokenize_shard(task, data, tokenizer, folder) for task in plan.tasks]
    check_sides(plan, shards, data)
    for side in plan.sides:
        pack_side(plan, side, shards, data, tokenizer.pad_token_id, folder)
    return {side: TokenStore.open(folder / side) for side in plan.sides}


def examples(store: TokenStore) -> set[bytes]:
    return {ids[:length].tobytes() for ids, length in zip(store.input_ids, store.row_lengths, strict=True)}


@pytest.mark.parametrize(
    ("available", "expected"), [(110_142, 430), (20_022, 78), (86_060, 336)], ids=["math", "code", "general"]
)
def test_a_256th_has_the_row_counts_of_the_dmt_paper(available: int, expected: int) -> None:
    chosen = Sample(fraction=1 / 256, count=None, seed=0).choose("math", available)
    assert chosen is not None and len(chosen) == expected
    assert (np.diff(chosen) > 0).all() and chosen.min() >= 0 and chosen.max() < available


def test_a_smaller_sample_is_part_of_a_larger_one_and_other_seeds_and_domains_choose_others() -> None:
    def chosen(domain: str = "math", seed: int = 0, **amount: Any) -> set[int]:
        indices = Sample(**({"fraction": 1.0, "count": None, "seed": seed} | amount)).choose(domain, 1000)
        assert indices is not None
        return set(indices.tolist())

    assert chosen(fraction=1 / 64) < chosen(fraction=1 / 16) < chosen(count=400) < chosen(fraction=0.5)
    assert chosen(count=400) != chosen(count=400, seed=1)
    assert chosen(count=400) != chosen("code", count=400)
    assert len(chosen(fraction=1e-9)) == 1
    assert len(chosen(fraction=0.0017)) == 2  # 1.7 of 1,000: the nearest number
    assert chosen(count=1000) == set(range(1000))


def test_a_fraction_of_the_examples_reaches_the_store(tokenizer: Any, files: dict[str, Path], tmp_path: Path) -> None:
    parts = {"train": files["train"], "eval": files["eval"]}
    whole = build(tokenizer, tmp_path / "whole", **parts)["train"]
    half = build(tokenizer, tmp_path / "half", fraction=0.5, **parts)["train"]
    ten = build(tokenizer, tmp_path / "ten", count=10, **parts)["train"]
    assert (whole.num_examples, half.num_examples, ten.num_examples) == (100, 50, 10)
    assert examples(ten) < examples(half) < examples(whole)


def test_the_key_of_a_store_tells_samples_and_exclusions_apart(files: dict[str, Path]) -> None:
    def key(data: DataConfig = DATA, domain: str = "math", **settings: Any) -> str:
        return plan_domain(domain, DomainConfig(**files, **settings), data, "tokenizer").key  # type: ignore[arg-type]

    other_seed = DATA.model_copy(update={"sample_seed": 1})
    assert key() == key(fraction=1.0) == key(other_seed)
    keys = [
        key(),
        key(fraction=0.5),
        key(count=50),
        key(other_seed, count=50),
        key(exclude=[{"pattern": "x"}]),
        key(count=0),
    ]
    assert len(set(keys)) == len(keys)
    # Another domain's sample of the same files is another one; all of them are the same examples.
    assert key(domain="code") == key()
    assert key(domain="code", count=50) != key(count=50)


def test_more_examples_than_there_are_is_an_error(tokenizer: Any, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"domain 'math': count 101, but it has 100 training examples"):
        build(tokenizer, tmp_path / "stores", count=101, **files)


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ([{"pattern": "python"}], 25),
        ([{"pattern": "question 7$"}], 1),
        ([{"pattern": "^t3$", "field": "tags"}], 20),
        ([{"pattern": "hard", "field": "level"}], 10),
        ([{"pattern": "python", "field": "tags"}], 0),
        ([{"pattern": "python"}, {"pattern": "^t3$", "field": "tags"}], 40),
    ],
    ids=["answer", "question", "tag", "field of one text", "not in this field", "either of two"],
)
def test_excluded_rows_are_left_out_of_training_and_counted(
    tokenizer: Any, files: dict[str, Path], tmp_path: Path, exclude: list[dict[str, str]], expected: int
) -> None:
    stores = build(tokenizer, tmp_path / "stores", exclude=exclude, **files)
    assert stores["train"].num_examples == 100 - expected
    assert stores["eval"].num_examples == 8  # evaluation files stay as they are
    report = Report(**stores["train"].manifest["report"])
    assert (report.num_excluded, report.num_bad_rows) == (expected, 0)


@pytest.mark.parametrize("settings", [{"fraction": 0}, {"count": 0}, {"train": []}], ids=str)
def test_a_domain_that_is_only_measured_has_no_training_store(
    tokenizer: Any, files: dict[str, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    stores = build(tokenizer, tmp_path / "stores", **({**files} | settings))
    assert list(stores) == ["eval"] and stores["eval"].num_examples == 8
    plan = plan_domain("math", DomainConfig(**({**files} | settings)), DATA, "tokenizer")
    assert {task.side for task in plan.tasks} == {"eval"}  # its training files are not read


def test_rows_set_aside_are_measured_where_nothing_is_trained_on(
    tokenizer: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    trained = build(tokenizer, tmp_path / "trained", train=files["train"], eval_fraction=0.2)
    measured = build(tokenizer, tmp_path / "measured", train=files["train"], eval_fraction=0.2, fraction=0)
    assert list(measured) == ["eval"] and examples(measured["eval"]) == examples(trained["eval"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.5, "count": 3}, "not both"),
        ({"exclude": [{"pattern": "("}]}, "not a regular expression"),
        ({"train": [], "eval": []}, "give `train`"),
    ],
    ids=["both", "pattern", "nothing"],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DomainConfig(**({"train": "a.jsonl"} | settings))
