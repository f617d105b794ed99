"""The interface of judges, the file that stores their answers, and their calibration on texts of known domain.

Legend: N texts, C calibration texts, D domains.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.cluster import ClusterConfig
from workers.fingerprint import fingerprint_bytes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOWEST_PROBABILITY = 1e-4  # of an answer, to keep its logarithm finite: hard answers are 0 for all domains but one
MIXING_DEVIATION = 0.1  # of the prior of a calibrator's weights between domains, in logits per nat


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """A judge's answer about one text: a probability for each domain, in their order, or None if it gave none."""

    probabilities: tuple[float, ...] | None
    note: str = ""
    """Why there are no probabilities."""
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    """Both as billed."""


@dataclass(frozen=True)
class JudgeContext:
    """What a judge may use."""

    domains: Sequence[str]
    training_texts: Callable[[], Mapping[str, list[str]]]
    """Reads training texts of each domain, in the form in which texts are judged."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Where a judging model runs."""
    seed: int = 0


class Judge(Protocol):
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
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                entry = json.loads(line)
                key, probabilities = entry.pop("text"), entry.pop("probabilities")
                self._known[key] = JudgeAnswer(probabilities and tuple(probabilities), **entry)

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


def parsed(answers: Sequence[JudgeAnswer]) -> tuple[Floats, Ints]:
    """Probabilities of the texts with an answer, shape (N, D), and the indices of these texts, shape (N,)."""
    kept = [index for index, answer in enumerate(answers) if answer.probabilities is not None]
    return np.array([answers[index].probabilities for index in kept], dtype=np.float64), np.array(kept, dtype=np.int64)


@dataclass(frozen=True)
class Calibration:
    """Answers of shape (C, D) about texts of known domain, and that domain's index, shape (C,)."""

    answers_CD: Floats
    labels_C: Ints


class Calibrator:
    """Turns a judge's answers into posteriors under equal shares: softmax_d(scale * x_d + bias_d + sum_e x_e W_ed).

    x are the logarithms of the answer. Scale and bias are "bias-corrected temperature scaling", which is sufficient for
    soft answers and all that a hundred texts per domain can determine. W, which a prior keeps near 0, is for biases
    that scale and bias cannot express, such as those of hard answers.
    """

    def __init__(
        self, calibration: Calibration, counts_C: Floats | None = None, near: "Calibrator | None" = None
    ) -> None:
        """Fit on the calibration texts, each counted `counts_C` times; every domain must be among them.

        The loss is convex: starting from a similar fit, `near`, saves time and changes nothing else.
        """
        from scipy.optimize import minimize
        from scipy.special import log_softmax

        features_CD, labels_C = _features(calibration.answers_CD), calibration.labels_C
        num_texts, num_domains = features_CD.shape
        weights_C = np.ones(num_texts) if counts_C is None else counts_C
        # Every domain has the same weight, whatever its number of texts.
        totals_D = np.bincount(labels_C, weights_C, num_domains)
        weights_C = weights_C * (weights_C.sum() / num_domains / totals_D[labels_C])
        truth_CD = np.eye(num_domains)[labels_C]

        def loss(parameters: Floats) -> tuple[float, Floats]:
            scale, bias_D, mixing_DD = _unpack(parameters, num_domains)
            log_posterior_CD = log_softmax(scale * features_CD + bias_D + features_CD @ mixing_DD, axis=1)
            error_CD = (np.exp(log_posterior_CD) - truth_CD) * weights_C[:, None]
            nats = -float(weights_C @ log_posterior_CD[np.arange(num_texts), labels_C])
            gradients = (
                [(error_CD * features_CD).sum()],
                error_CD.sum(axis=0),
                (features_CD.T @ error_CD + mixing_DD / MIXING_DEVIATION**2).ravel(),
            )
            return nats + float((mixing_DD**2).sum()) / (2.0 * MIXING_DEVIATION**2), np.concatenate(gradients)

        start = np.concatenate([[1.0], np.zeros(num_domains + num_domains**2)]) if near is None else near._parameters
        self._parameters: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
        self._scale, self._bias_D, self._mixing_DD = _unpack(self._parameters, num_domains)

    def __call__(self, answers_ND: Floats) -> Floats:
        """Posteriors, shape (N, D)."""
        from scipy.special import softmax

        features_ND = _features(answers_ND)
        scores_ND = self._scale * features_ND + self._bias_D + features_ND @ self._mixing_DD
        posteriors_ND: Floats = softmax(scores_ND, axis=1)
        return posteriors_ND


def _unpack(parameters: Floats, num_domains: int) -> tuple[float, Floats, Floats]:
    bias_D, mixing = parameters[1 : 1 + num_domains], parameters[1 + num_domains :]
    return float(parameters[0]), bias_D, mixing.reshape(num_domains, num_domains)


def _features(answers_ND: Floats) -> Floats:
    return np.log(np.clip(answers_ND, LOWEST_PROBABILITY, 1.0))
