"""A model that writes documents of known domains in known shares, and rows of these domains to know them by."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.config.run import RunConfig
from orchestrator.prepare.detection.generation import GeneratedText, GenerationJob
from tests.runs import write_byte_tokenizer

WORDS = {
    "law": ("court", "party", "clause", "claim", "notice", "statute"),
    "code": ("def", "return", "print(x)", "import", "for i in", "else:"),
    "health": ("patient", "dose", "fever", "nurse", "trial", "cell"),
}
SHARED = ("the", "a", "of", "is", "and", "to")
SHARES = {"law": 0.6, "code": 0.3, "health": 0.1}
OPENING_TOKENS = 8


def write_words(domain: str, rng: random.Random, purity: float, count: int = 25) -> str:
    """Words of a domain, among words that all domains have and, for the rest of `purity`, words of other domains."""
    return " ".join(rng.choice(_vocabulary(domain, rng, purity)) for _ in range(count))


def _vocabulary(domain: str, rng: random.Random, purity: float) -> tuple[str, ...]:
    if rng.random() < 0.6:
        return SHARED
    return WORDS[domain if rng.random() < purity else rng.choice(list(WORDS))]


class WordyModel:
    """In the place of a TextGenerator: writes less purely than people do, so that its texts are harder to judge."""

    jobs: ClassVar[list[GenerationJob]] = []

    def __init__(self, *settings: Any) -> None:
        pass

    def __call__(self, job: GenerationJob) -> list[GeneratedText]:
        self.jobs.append(job)
        rng = random.Random(f"{job.seed} {job.key}")
        names = list(SHARES)
        if job.openings:
            name = job.key.split("-")[1]
            domains: Iterable[str] = [name] * len(job.openings)
        else:
            domains = rng.choices(names, [SHARES[name] for name in names], k=job.num_texts)
        return [GeneratedText("opening ", write_words(domain, rng, 0.6), 25, True) for domain in domains]


def write_config(folder: Path, **detection: Any) -> RunConfig:
    """A configuration over the three domains."""
    (folder / "base").mkdir(parents=True)
    vocab_size = write_byte_tokenizer(folder / "base")
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocab_size}))
    for name in WORDS:
        for side, count in (("train", 120), ("eval", 30)):
            rng = random.Random(f"{name} {side}")
            rows = [{"text": write_words(name, rng, 0.9)} for _ in range(count)]
            (folder / f"{name}-{side}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = {
        "calibration": {"texts_per_domain": 60, "opening_tokens": OPENING_TOKENS},
        "generation": {"batch_size": 50},
        "texts_per_round": 200,
        "max_texts": 1000,
        "num_bootstrap": 20,
    }
    return RunConfig.model_validate(
        {
            "name": "small",
            "output_dir": str(folder / "runs"),
            "model": {"path": str(folder / "base")},
            "domains": {
                name: {"train": str(folder / f"{name}-train.jsonl"), "eval": str(folder / f"{name}-eval.jsonl")}
                for name in WORDS
            },
            "mixing": {"type": "versatune", "initial": "detected", "reference": dict.fromkeys(WORDS, 1.0)},
            "training": {"max_steps": 1},
            "detection": settings | detection,
        }
    )
