"""The interface of judges, and the file that stores their answers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.cluster import ClusterConfig
from workers.fingerprint import fingerprint_bytes


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """A judge's answer about one text: a probability for each domain, in their order, or None if it gave none."""

    probabilities: tuple[float, ...] | None
    note: str = ""
    """Why there are no probabilities."""
    num_input_tokens: int = 0
    """Billed input tokens."""
    num_output_tokens: int = 0
    """Billed output tokens."""


@dataclass(frozen=True)
class JudgeContext:
    """What a judge may use."""

    domains: Sequence[str]
    """Names of the domains in the configuration."""
    training_texts: Callable[[], Mapping[str, list[str]]]
    """Reads training texts of each domain, in the form in which texts are judged."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Where a judging model runs."""
    seed: int = 0
    """Seed of all random choices."""


class Judge(Protocol):
    """Judges texts."""

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer]]:
        """(index of the text, answer) of every text, as they arrive. No text is blank."""


class Memory:
    """Asks a judge about each text only once: answers are appended to a file as they arrive.

    A line that a crash left incomplete is skipped, and the question is asked again.
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
        keys = [fingerprint_bytes(text.encode("utf-8", "replace"), 16) for text in texts]
        unknown = {key: text for key, text in zip(keys, texts, strict=True) if text.strip() and key not in self._known}
        with self._path.open("ab") as file:
            if file.tell():
                file.write(b"\n")  # ends a line that a crash left incomplete
            for index, answer in self._judge.answers(list(unknown.values())):
                key = list(unknown)[index]
                self._known[key] = answer
                file.write(json.dumps({"text": key} | asdict(answer)).encode() + b"\n")
                file.flush()
                on_answer()
        return [self._known.get(key, JudgeAnswer(None, "empty text")) for key in keys]

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Input and output tokens over all answers in the file."""
        known = self._known.values()
        return sum(a.num_input_tokens for a in known), sum(a.num_output_tokens for a in known)


def parsed(answers: Sequence[JudgeAnswer]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities of the texts with an answer, shape (N, D), and the indices of these texts, shape (N,)."""
    kept = [index for index, answer in enumerate(answers) if answer.probabilities is not None]
    return np.array([answers[index].probabilities for index in kept], dtype=np.float64), np.array(kept, dtype=np.int64)
