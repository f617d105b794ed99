"""The calibration of a judge's answers on texts of known domain.

Legend: N texts, C calibration texts, D domains.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOWEST_PROBABILITY = 1e-4  # of an answer, to keep its logarithm finite: hard answers are 0 for all domains but one
MIXING_DEVIATION = 0.1  # of the prior of a calibrator's weights between domains, in logits per nat


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
