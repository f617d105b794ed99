"""Texts of a real, tiny model: where they begin and end, what they depend on, and what is kept of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cluster.pool import WorkerPool
from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.detection import CalibrationConfig, GenerationConfig
from orchestrator.prepare.detection.generation import (
    GeneratedText,
    GenerationJob,
    TextGenerator,
    continuation_jobs,
    free_jobs,
    generate,
)
from tests.runs import write_llama
from workers.config.model import ModelConfig

OPENING = 4
BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Random weights; EOS and BOS are likelier than other tokens, so that texts end."""
    folder = tmp_path_factory.mktemp("model")
    written = write_llama(
        folder, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64
    )
    with torch.no_grad():
        written.lm_head.weight[:2] *= 6.0
    written.save_pretrained(folder)
    return ModelConfig(path=str(folder), dtype="float32")


def generator(model: ModelConfig, **settings: Any) -> TextGenerator:
    return TextGenerator(model, GenerationConfig(**({"max_new_tokens": 12, "batch_size": 16} | settings)), OPENING)


def job(key: str = "free-000000", count: int = 16, **more: Any) -> GenerationJob:
    return GenerationJob(key, 0, count, **more)


def test_the_same_job_gives_the_same_texts_whatever_came_before(model: ModelConfig) -> None:
    write = generator(model)
    first = write(job())
    assert write(job("free-000001")) != first
    assert write(GenerationJob("free-000000", 1, 16)) != first
    assert write(job()) == first == generator(model)(job())


def test_the_models_own_sampling_settings_do_not_bend_the_distribution(model: ModelConfig, tmp_path: Path) -> None:
    for file in Path(model.path).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    bent: dict[str, Any] = {"do_sample": True, "top_k": 1, "temperature": 0.01, "eos_token_id": 77, "max_new_tokens": 2}
    bent |= {"min_p": 0.9, "suppress_tokens": list(range(40, 90)), "no_repeat_ngram_size": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(bent))
    texts = generator(model.model_copy(update={"path": str(tmp_path)}))(job())
    assert texts == generator(model)(job())


def test_settings_do_bend_it(model: ModelConfig) -> None:
    assert len({text.whole for text in generator(model, top_k=1)(job())}) == 1
    assert generator(model, temperature=0.5)(job()) != generator(model)(job())


def test_a_text_is_one_document(model: ModelConfig) -> None:
    texts = generator(model)(job(count=200))
    assert any(text.is_ended for text in texts) and any(not text.is_ended for text in texts)
    assert all("<" + name not in text.whole for text in texts for name in ("bos>", "eos>", "pad>"))
    assert all(text.num_tokens == 12 + OPENING for text in texts if not text.is_ended)
    assert all(text.num_tokens < 12 + OPENING for text in texts if text.is_ended)
    short = next(text for text in texts if text.num_tokens < OPENING)
    assert short.text == "" and short.judged == short.opening  # nothing follows its opening


def test_a_row_is_cut_at_either_border_and_at_the_first(model: ModelConfig) -> None:
    write = generator(model)
    a, b, c = write._tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert write._text([a, b, c, a, b, EOS, c, BOS], 0) == GeneratedText("abca", "b", 5, True)
    assert write._text([a, b, c, a, b, BOS, c, EOS], 0) == GeneratedText("abca", "b", 5, True)
    assert write._text([EOS, a, a, a, a, a], 0) == GeneratedText("", "", 0, True)
    assert write._text([a, b, c, a, b, b], 0) == GeneratedText("abca", "bb", 6, False)
    assert write._text([a, EOS, c, a, b, EOS], OPENING) == GeneratedText("aca", "b", 1, True)  # given, not written


def test_a_continuation_is_judged_without_its_opening(model: ModelConfig) -> None:
    openings = tuple(tuple(range(10 + number, 10 + number + OPENING)) for number in range(5))
    write = generator(model)
    texts = write(job("continuation-law-000000", 5, openings=openings))
    assert [text.opening for text in texts] == [write._tokenizer.decode(list(ids)) for ids in openings]
    assert all(text.num_tokens <= 12 for text in texts) and any(text.text for text in texts)
    assert all(text.judged == text.text for text in texts if text.text.strip())


def test_a_length_beyond_the_models_positions_is_refused(model: ModelConfig) -> None:
    with pytest.raises(ValueError, match=r"64 positions .* use at most 59"):
        generator(model, max_new_tokens=60)


def test_finished_batches_are_read_not_written_again(model: ModelConfig, tmp_path: Path) -> None:
    jobs = free_jobs(GenerationConfig(batch_size=4), 0, 10)
    assert [item.num_texts for item in jobs] == [4, 4, 4]
    counts: list[int] = []
    with WorkerPool(lambda: generator(model), ClusterConfig()) as pool:
        first = generate(jobs[:2], tmp_path, pool, counts.append)

    def refuse() -> TextGenerator:
        raise AssertionError("a model was loaded for nothing")

    with WorkerPool(refuse, ClusterConfig()) as pool:
        assert generate(jobs[:2], tmp_path, pool) == first
    assert counts == [0, 4, 4] and len(list(tmp_path.iterdir())) == 2


def test_few_openings_are_continued_in_turn() -> None:
    calibration = CalibrationConfig(texts_per_domain=5, opening_tokens=2)
    jobs = continuation_jobs([[1, 2], [3, 4]], "law", GenerationConfig(batch_size=3), calibration, 0)
    assert [item.openings for item in jobs] == [((1, 2), (3, 4), (1, 2)), ((3, 4), (1, 2))]
    assert len({item.key for item in jobs}) == 2
