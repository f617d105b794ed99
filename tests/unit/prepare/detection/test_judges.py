"""The offline judges: a classifier on small domains, a language model against its definition; and the memory."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.config.detection import ClassifierJudgeConfig, LikelihoodJudgeConfig
from orchestrator.prepare.detection.judges import JudgeAnswer, JudgeContext, build_judge
from orchestrator.prepare.detection.judges.base import Memory, parsed
from orchestrator.prepare.detection.judges.likelihood import LabelScorer
from tests.runs import write_llama
from tests.unit.prepare.detection.wordy_model import WORDS, write_words
from workers.config.model import ModelConfig
from workers.model.loading import load_model
from workers.model.tokenizer import load_tokenizer


def texts_of(seed: int, count: int, num_words: int = 25) -> dict[str, list[str]]:
    return {
        name: [write_words(name, random.Random(f"{name} {seed} {i}"), 0.7, num_words) for i in range(count)]
        for name in WORDS
    }


def classify(texts: list[str], num_words: int = 25) -> np.ndarray:
    context = JudgeContext(list(WORDS), lambda: texts_of(0, 150, num_words))
    return parsed([answer for _, answer in build_judge(ClassifierJudgeConfig(), context).answers(texts)])[0]


@pytest.mark.parametrize(("num_words", "lowest", "highest"), [(25, 0.85, 1.0), (6, 0.5, 0.8)])
def test_the_classifier_knows_its_domains_and_how_sure_it_may_be(num_words: int, lowest: float, highest: float) -> None:
    by_domain = texts_of(1, 100, num_words)
    answers_ND = classify([text for texts in by_domain.values() for text in texts], num_words)
    np.testing.assert_allclose(answers_ND.sum(axis=1), 1.0)
    is_right_N = answers_ND.argmax(axis=1) == np.repeat(np.arange(3), 100)
    assert lowest < is_right_N.mean() <= highest
    assert abs(answers_ND.max(axis=1).mean() - is_right_N.mean()) < 0.08  # as often right as it says


def test_the_classifier_gives_the_same_bits_again() -> None:
    texts = texts_of(2, 5)["law"]
    assert classify(texts).tolist() == classify(texts).tolist()


def test_a_classifier_of_one_domain_has_nothing_to_ask() -> None:
    context = JudgeContext(["law"], dict)
    answers = [answer for _, answer in build_judge(ClassifierJudgeConfig(), context).answers(["x", "y"])]
    assert answers == [JudgeAnswer((1.0,)), JudgeAnswer((1.0,))]


@pytest.fixture(scope="module")
def judging_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("judge")
    write_llama(folder, hidden_size=16, num_attention_heads=2, max_position_embeddings=512, initializer_range=0.5)
    return ModelConfig(path=str(folder), dtype="float32")


def test_likelihoods_are_mean_log_probabilities_of_the_names(judging_model: ModelConfig) -> None:
    domains = ["law", "a longer name", "code"]
    text = "the party of the first part"
    config = LikelihoodJudgeConfig(model=judging_model)
    (scored,) = LabelScorer(config, domains)([text])
    tokenizer, model = load_tokenizer(judging_model), load_model(judging_model).eval()
    prompt = f"Text: {text}\n\nSubjects: {', '.join(domains)}\nThe subject of the text above is:"
    scores = []
    for domain in domains:
        before = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        name = tokenizer(f" {domain}", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            nats = model(torch.tensor([before + name]), use_cache=False).logits[0].log_softmax(dim=-1)
        scores.append(np.mean([nats[len(before) - 1 + place, token].item() for place, token in enumerate(name)]))
    expected = np.exp(scores) / np.exp(scores).sum()
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(scored, expected, atol=1e-5)


def test_the_likelihood_judge_answers_every_text_in_its_place(judging_model: ModelConfig) -> None:
    context = JudgeContext(["law", "code"], dict)
    judge = build_judge(LikelihoodJudgeConfig(model=judging_model, max_text_tokens=16), context)
    texts = [f"text number {number}" for number in range(20)]
    by_index = dict(judge.answers(texts))
    assert sorted(by_index) == list(range(20))
    assert by_index[19] == dict(judge.answers(texts[19:]))[0]
    long = dict(judge.answers([texts[0].ljust(16, "x") + "a", texts[0].ljust(16, "x") + "b"]))
    assert len("Text: ") + 16 > 16 and long[0] == long[1]  # cut at max_text_tokens


def test_an_answer_is_kept_under_the_hash_of_its_text(tmp_path: Path) -> None:
    path, key = tmp_path / "answers.jsonl", hashlib.blake2b(b"the court", digest_size=16).hexdigest()
    path.write_text(json.dumps({"text": key, "probabilities": [0.25, 0.75], "note": ""}) + "\n")
    unable = build_judge(ClassifierJudgeConfig(), JudgeContext(list(WORDS), dict))
    assert Memory(unable, path).ask(["the court"]) == [JudgeAnswer((0.25, 0.75))]


def test_a_damaged_line_of_the_memory_is_asked_again(tmp_path: Path) -> None:
    context = JudgeContext(list(WORDS), lambda: texts_of(0, 40))
    path = tmp_path / "answers.jsonl"
    texts = ["the court", "a patient", "import"]
    first = Memory(build_judge(ClassifierJudgeConfig(), context), path).ask(texts)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"[1]", b'"x"', b"{}", lines[2][:30]]))
    assert Memory(build_judge(ClassifierJudgeConfig(), context), path).ask(texts) == first
    assert len(path.read_bytes().splitlines()) >= 5


def test_an_answer_is_on_disk_before_the_next_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    seen = []

    class Slow:
        def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer]]:
            for index in range(len(texts)):
                seen.append(path.read_bytes().count(b"\n"))
                yield index, JudgeAnswer((1.0,))

    Memory(Slow(), path).ask(["a", "b", "c"])
    assert seen == [0, 1, 2]
