"""The judge that needs no network and no second model: a text classifier fitted on the domains' training rows.

TF-IDF of words and of characters in words (the latter for languages without spaces, for code and for misspelt text),
multinomial logistic regression, and probabilities calibrated on a fifth of the rows, which the fit does not see. It
recognises a domain by vocabulary and formatting, so it confuses domains that share these; the calibration set measures
how often it does so on the model's texts.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.detection import ClassifierJudgeConfig
from orchestrator.prepare.detection.judges.base import Calibration, Calibrator, JudgeAnswer, JudgeContext
from workers.settings import narrow_seed

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_HELD_BACK = 5  # every fifth row is for calibration
_MAX_FEATURES = 60_000  # for words, and as many for characters


class ClassifierJudge:
    """Fitted at the first question."""

    def __init__(self, config: ClassifierJudgeConfig, context: JudgeContext) -> None:
        self._context = context
        self._fitted: tuple[Pipeline, Calibrator] | None = None

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer]]:
        if len(self._context.domains) == 1:
            yield from ((index, JudgeAnswer((1.0,))) for index in range(len(texts)))
            return
        if not texts:
            return
        if self._fitted is None:
            self._fitted = self._fit()
        model, calibrator = self._fitted
        answers_ND = calibrator(_probabilities(model, list(texts)))
        for index, answer_D in enumerate(answers_ND.tolist()):
            yield index, JudgeAnswer(tuple(answer_D))

    def _fit(self) -> "tuple[Pipeline, Calibrator]":
        by_domain = self._context.training_texts()
        rows = [list(enumerate(by_domain[domain])) for domain in self._context.domains]
        fitted = [(text, label) for label, texts in enumerate(rows) for place, text in texts if place % _HELD_BACK]
        held_back = [(text, label) for label, texts in enumerate(rows) for _, text in texts[::_HELD_BACK]]
        model = _pipeline(self._context.seed)
        model.fit([text for text, _ in fitted], [label for _, label in fitted])
        answers_CD = _probabilities(model, [text for text, _ in held_back])
        return model, Calibrator(Calibration(answers_CD, np.array([label for _, label in held_back])))


def _pipeline(seed: int) -> "Pipeline":
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    common = {"sublinear_tf": True, "max_features": _MAX_FEATURES, "dtype": np.float32}
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]", **common)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **common)
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200, random_state=narrow_seed(seed))
    return make_pipeline(make_union(words, characters), model)


def _probabilities(model: "Pipeline", texts: list[str]) -> NDArray[np.float64]:
    return np.asarray(model.predict_proba(texts), dtype=np.float64)
