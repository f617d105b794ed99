"""What every judge is, and the file that remembers what it said."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.cluster import ClusterConfig


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """What a judge said of one text: a probability for each domain, in their order, or None for what it did not say."""

    probabilities: tuple[float, ...] | None
    note: str = ""
    """Why there are no probabilities."""
    num_input_tokens: int = 0
    """Tokens that were paid for, sent."""
    num_output_tokens: int = 0
    """Tokens that were paid for, answered."""


@dataclass(frozen=True)
class JudgeContext:
    """What a judge may use."""

    domains: Sequence[str]
    """Names of the domains: those of the configuration."""
    training_texts: Callable[[], Mapping[str, list[str]]]
    """Reads texts of each domain, in the form in which texts are judged."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Where a judge that is a model runs."""
    seed: int = 0
    """Seed of everything random."""


class Judge(Protocol):
    """Judges texts."""

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer]]:
        """(index of the text, answer) of every text, as they are known. None of the texts is blank."""


class Memory:
    """A judge that is asked about a text once: answers are appended to a file as they come.

    A line that a crash left half written is passed over, and the question asked again.
    """

    def __init__(self, judge: Judge, path: Path) -> None:
        self._judge = judge
        self._path = path
        self._known: dict[str, JudgeAnswer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            try:
                entry = json.loads(line)
                key, probabilities = entry.pop("text"), entry.pop("probabilities")
                self._known[key] = JudgeAnswer(probabilities and tuple(probabilities), **entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def ask(self, texts: Sequence[str], on_answer: Callable[[], None] = lambda: None) -> list[JudgeAnswer]:
        """The answer of every text, in order; a blank text is answered without asking."""
        keys = [blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest() for text in texts]
        unknown = {key: text for key, text in zip(keys, texts, strict=True) if text.strip() and key not in self._known}
        with self._path.open("ab") as file:
            if file.tell():
                file.write(b"\n")  # ends a line that a crash left open
            for index, answer in self._judge.answers(list(unknown.values())):
                key = list(unknown)[index]
                self._known[key] = answer
                file.write(json.dumps({"text": key} | asdict(answer)).encode() + b"\n")
                file.flush()
                on_answer()
        return [self._known.get(key, JudgeAnswer(None, "empty text")) for key in keys]

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Tokens sent and answered, over all that the file remembers."""
        known = self._known.values()
        return sum(a.num_input_tokens for a in known), sum(a.num_output_tokens for a in known)


def parsed(answers: Sequence[JudgeAnswer]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities of the texts that were answered, shape (N, D), and which texts they are, shape (N,)."""
    kept = [index for index, answer in enumerate(answers) if answer.probabilities is not None]
    return np.array([answers[index].probabilities for index in kept], dtype=np.float64), np.array(kept, dtype=np.int64)
