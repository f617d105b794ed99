"""RegMix: the losses of short runs on random mixes, regressed on the mix, tell the mix to train on (arXiv 2407.01492).

    runs         mix w_i from a Dirichlet distribution, losses l_i of all domains at its end
    regression   l = f(w) for each domain
    best mix     mean of those of many simulated mixes that have the lowest predicted metric

Certain of the paper: the steps, the linear and the boosted regression, the average over the best simulated mixes. Ours:
the quadratic one (the polynomial of mixture experiments: few runs are enough for an optimum inside the simplex), and
that the regression is chosen by its error on runs it has not seen. Where it fails: with few runs the best mix is
hardly better than the best that was seen, and an optimum at one budget need not be that of a longer training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.settings import narrow_seed

Array = NDArray[np.float64]
ScoreLosses = Callable[[Array], Array]
"""Losses of the domains, a row for each mix -> the metric of each row."""

NUM_SIMULATED = 100_000
NUM_AVERAGED = 128
_NUM_FOLDS = 5


@dataclass(frozen=True)
class Prediction:
    """What the regression says."""

    shares_D: Array
    """The predicted best mix."""
    score: float
    """Its predicted metric."""
    regression: str
    """The one that was chosen."""
    errors: Mapping[str, float]
    """Root mean squared error of each regression's metric on runs that it had not seen."""
    rank_correlation: float
    """Spearman's, of the chosen one's predictions with what was measured, on runs that it had not seen."""


def predict_best_mix(
    shares_ND: Array, losses_NE: Array, score: ScoreLosses, concentration: float, seed: int
) -> Prediction:
    """Learn from runs, and simulate.

    Args:
        shares_ND: mixes of N runs over D trained domains.
        losses_NE: their losses, of E domains, in nats per token.
        score: the metric.
        concentration: of the Dirichlet distribution that mixes are simulated from.
        seed: of the folds and the simulation.

    Raises:
        ValueError: fewer runs than the folds take.
    """
    from scipy.stats import spearmanr

    if len(shares_ND) < _NUM_FOLDS:
        raise ValueError(f"search: {len(shares_ND)} finished runs; a regression takes at least {_NUM_FOLDS}")
    measured_N = score(losses_NE)
    unseen = {name: score(_predict_unseen(make(seed), shares_ND, losses_NE, seed)) for name, make in _MODELS.items()}
    errors = {name: float(np.sqrt(np.mean((of_N - measured_N) ** 2))) for name, of_N in unseen.items()}
    chosen = min(errors, key=errors.__getitem__)
    model = _MODELS[chosen](seed).fit(shares_ND, losses_NE)
    simulated_MD = np.random.default_rng(seed).dirichlet(np.full(shares_ND.shape[1], concentration), NUM_SIMULATED)
    predicted_M = score(_as_rows(model.predict(simulated_MD)))
    best_D = simulated_MD[np.argsort(predicted_M)[:NUM_AVERAGED]].mean(axis=0)
    best_D /= best_D.sum()
    return Prediction(
        shares_D=best_D,
        score=float(score(_as_rows(model.predict(best_D[None])))[0]),
        regression=chosen,
        errors=errors,
        rank_correlation=float(spearmanr(unseen[chosen], measured_N).statistic),
    )


def _predict_unseen(model: Any, shares_ND: Array, losses_NE: Array, seed: int) -> Array:
    from sklearn.model_selection import KFold, cross_val_predict

    folds = KFold(_NUM_FOLDS, shuffle=True, random_state=narrow_seed(seed))
    return _as_rows(cross_val_predict(model, shares_ND, losses_NE, cv=folds))


def _as_rows(losses: Array) -> Array:
    """Of a single domain, scikit-learn returns a vector."""
    return losses.reshape(len(losses), -1)


def _linear(seed: int) -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression()


def _quadratic(seed: int) -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    return make_pipeline(PolynomialFeatures(2), StandardScaler(), RidgeCV(np.logspace(-4, 2, 13)))


def _boosted(seed: int) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.multioutput import MultiOutputRegressor

    trees = GradientBoostingRegressor(n_estimators=200, learning_rate=0.05, max_depth=3, random_state=narrow_seed(seed))
    return MultiOutputRegressor(trees)


_MODELS: Mapping[str, Callable[[int], Any]] = {"linear": _linear, "quadratic": _quadratic, "boosted trees": _boosted}


def describe(prediction: Prediction, domains: Sequence[str]) -> list[str]:
    """Sentences for a person."""
    mix = ", ".join(f"{name} {share:.1%}" for name, share in zip(domains, prediction.shares_D, strict=True))
    errors = ", ".join(f"{name} {error:.4f}" for name, error in prediction.errors.items())
    return [
        f"Predicted best mix: {mix}; predicted metric {prediction.score:.4f}.",
        f"Regression: {prediction.regression}; rank correlation {prediction.rank_correlation:.2f} on unseen runs. "
        f"Errors on unseen runs: {errors}.",
    ]
