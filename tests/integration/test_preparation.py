"""Preparation of several domains, on a real local Ray and without one: same stores, same errors, nothing made twice."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import ray

from orchestrator.prepare import token_stores
from orchestrator.prepare.token_stores import prepare_stores
from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
from workers.data.preparing import fingerprint_tokenizer, plan_domain
from workers.data.tokenization import ShardTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATA = DataConfig(max_length=256)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    was_up = ray.is_initialized()
    if not was_up:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    if not was_up:
        ray.shutdown()


@pytest.fixture
def on_ray(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local Ray, on which even small files are prepared."""
    monkeypatch.setattr(token_stores, "_SMALL_BYTES", 0)


@pytest.fixture
def domains(tmp_path: Path) -> dict[str, DomainConfig]:
    def write(name: str, count: int, tail: str = "") -> Path:
        path = tmp_path / name
        rows = [{"prompt": f"{name} {number}", "completion": "x" * (number % 50 + 1)} for number in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
        return path

    return {
        "math": DomainConfig(train=[write("m1.jsonl", 700), write("m2.jsonl", 300)], eval=[write("m3.jsonl", 40)]),
        "code": DomainConfig(train=[write("c.jsonl", 400, tail="broken\n")], eval_fraction=0.1),
    }


@pytest.fixture
def model(tokenizer_folder: Path) -> ModelConfig:
    return ModelConfig(path=str(tokenizer_folder))


def test_ray_and_no_ray_make_the_same_stores_and_only_once(
    on_ray: None,
    domains: dict[str, DomainConfig],
    model: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    progress: list[tuple[float, float, str, int]] = []
    made = prepare_stores(domains, DATA, model, tmp_path / "ray", lambda *news: progress.append(news))
    assert made["math"].train.num_examples == 1000 and made["math"].eval.num_examples == 40
    assert made["code"].train.num_examples + made["code"].eval.num_examples == 400
    assert made["code"].report.num_bad_rows == 1
    for domain in domains:
        news = [(done, num_rows) for done, _, of, num_rows in progress if of == domain]
        total = next(total for _, total, of, _ in progress if of == domain)
        assert news == sorted(news) and news[0] == (0, 0)
        assert news[-1] == (pytest.approx(total), made[domain].report.num_rows)
        assert sum(done > 0.99 * total for done, _ in news) == 1  # not before its stores are made
    assert {path.name for path in (tmp_path / "ray").iterdir()} == {
        pair.train.folder.parent.name for pair in made.values()
    }

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    here = prepare_stores(domains, DATA, model, tmp_path / "here")
    for domain in domains:
        for side in ("train", "eval"):
            one, other = getattr(made[domain], side), getattr(here[domain], side)
            assert one.fingerprint == other.fingerprint
            for name in ("input_ids", "position_ids", "loss_mask", "row_lengths", "row_examples"):
                assert np.array_equal(getattr(one, name), getattr(other, name))

    monkeypatch.setattr(token_stores, "_tokenize", None)  # a second start has no use for it
    again = prepare_stores(domains, DATA, model, tmp_path / "here")
    assert again["code"].report == made["code"].report and again["code"].report.num_bad_rows == 1


def test_a_task_that_tokenises_imports_neither_torch_nor_deepspeed(
    on_ray: None, domains: dict[str, DomainConfig], model: ModelConfig, tmp_path: Path
) -> None:
    tokenizer = token_stores.cached_tokenizer(model, tmp_path)

    def look(tokenizer: "PreTrainedTokenizerBase", task: ShardTask) -> tuple[int, str, set[str]]:
        shard = token_stores._tokenize(tokenizer, task, DATA, tmp_path, None)
        return shard.num_examples["train"], fingerprint_tokenizer(tokenizer), set(sys.modules)

    fingerprint = fingerprint_tokenizer(tokenizer)
    tasks = plan_domain("math", domains["math"], DATA, fingerprint).tasks
    answers = dict(token_stores._run_on_ray({}, [ray.put(tokenizer)], look, [(task,) for task in tasks]))
    assert [answers[index][0] for index in range(3)] == [700, 300, 0]
    for _, of_task, modules in answers.values():
        assert of_task == fingerprint and "transformers" in modules
        assert not modules & {"torch", "deepspeed", "pandas", "datasets"}


def test_a_bad_row_in_a_task_is_told_in_plain_words(
    on_ray: None, domains: dict[str, DomainConfig], model: ModelConfig, tmp_path: Path
) -> None:
    strict = DATA.model_copy(update={"bad_rows": "fail"})
    with pytest.raises(ValueError) as error:
        prepare_stores(domains, strict, model, tmp_path / "cache")
    assert type(error.value) is ValueError
    assert str(error.value).startswith(f"domain 'code': {tmp_path / 'c.jsonl'}:401: not JSON")
    assert "Traceback" not in str(error.value) and "ray" not in str(error.value).lower()
    assert list((tmp_path / "cache").iterdir()) == []


def test_small_files_are_prepared_before_a_worker_would_have_started(
    local_ray: None,
    domains: dict[str, DomainConfig],
    model: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_stores, "_run_on_ray", None)
    assert prepare_stores(domains, DATA, model, tmp_path / "cache")["math"].train.num_examples == 1000
    monkeypatch.setattr(token_stores, "_SMALL_BYTES", 50_000)  # each file is smaller, not all together
    with pytest.raises(TypeError):
        prepare_stores(domains, DATA, model, tmp_path / "another")


def test_a_cached_store_is_still_held_to_the_limit(
    domains: dict[str, DomainConfig], model: ModelConfig, tmp_path: Path
) -> None:
    prepare_stores(domains, DATA, model, tmp_path / "cache")
    with pytest.raises(ValueError, match="domain 'code': 1 of 401 rows cannot be used"):
        prepare_stores(domains, DATA.model_copy(update={"max_bad_fraction": 0.001}), model, tmp_path / "cache")


def test_a_second_builder_of_the_same_store_finds_or_brings_it(
    domains: dict[str, DomainConfig], model: ModelConfig, tmp_path: Path
) -> None:
    twins = {"math": domains["math"], "copy": domains["math"]}
    stores = prepare_stores(twins, DATA, model, tmp_path / "cache")
    assert stores["math"].train.folder == stores["copy"].train.folder
    shutil.rmtree(stores["math"].train.folder.parent)
    assert prepare_stores(twins, DATA, model, tmp_path / "cache")["copy"].train.num_examples == 1000
