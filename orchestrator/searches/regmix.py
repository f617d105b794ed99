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
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from orchestrator.mixing import MixingConfig
from orchestrator.mixing.fixed import FixedConfig
from orchestrator.searches.base import Array, Proposal, Search, SearchConfig, SearchedRun, Trial, score_losses
from orchestrator.searches.space import Distribution
from workers.settings import narrow_seed

ScoreLosses = Callable[[Array], Array]
"""Losses of the domains, a row for each mix -> the metric of each row."""

SHARES = "mixing.shares"
NUM_SIMULATED = 100_000
NUM_AVERAGED = 128
_NUM_FOLDS = 5


class RegMixConfig(SearchConfig):
    """Mixture regression (RegMix): many short runs on random mixes, a regression of the losses on the mix, and one run
    of the mix that it predicts to be best."""

    type: Literal["regmix"]
    """Finds fixed shares."""
    num_trials: Annotated[int, Field(ge=4)] = 32
    """Runs to learn from; about five for each domain at the least."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; default: as many as the cluster has room for. A trial takes what `cluster` says of a run."""
    concentration: Annotated[float, Field(gt=0)] = 1.0
    """Of the Dirichlet distribution that the mixes come from."""

    @property
    def distributions(self) -> dict[str, Distribution]:
        return {SHARES: Distribution(simplex=self.concentration)}

    def check(self, run: SearchedRun) -> None:
        super().check(run)
        if len(run.trained_domains) < 2:
            raise ValueError("search: regmix mixes domains, but only one is trained on; add another")


class RegMix(Search[RegMixConfig]):
    """A batch of random mixes, then the run of the best one."""

    @property
    def max_concurrent(self) -> int | None:
        return self.config.max_concurrent

    def vary(self, mixing: MixingConfig) -> MixingConfig:
        """Fixed shares, whatever the run's algorithm is."""
        names = self.run.trained_domains
        return FixedConfig(type="fixed", unit=mixing.unit, shares={name: 1 / len(names) for name in names})

    def title(self, batch: int) -> str:
        return "random mixes" if batch == 1 else "the predicted best mix"

    def next_trials(self, done: Sequence[Trial]) -> list[Proposal]:
        if not done:
            return self.draw(self.config.num_trials)
        if done[-1].proposal.kind == "predicted":
            return []
        shares = self._predict(done).shares_D.tolist()
        return [Proposal({SHARES: dict(zip(self.run.trained_domains, shares, strict=True))}, kind="predicted")]

    def conclude(self, done: Sequence[Trial]) -> list[str]:
        *learned_from, validated = done
        reached = "it failed" if validated.score is None else f"it reaches {validated.score:.3f}"
        return [*describe(self._predict(learned_from), self.run.trained_domains), f"Trained, {reached}."]

    def _predict(self, trials: Sequence[Trial]) -> "Prediction":
        names, domains = self.run.trained_domains, list(self.run.domains)
        done = [trial for trial in trials if trial.state == "finished" and None not in trial.losses_nats.values()]
        return predict_best_mix(
            np.array([[trial.proposal.changes[SHARES][name] for name in names] for trial in done]),
            np.array([[trial.losses_nats[name] for name in domains] for trial in done], dtype=np.float64),
            lambda losses_ND: score_losses(self.config.metric, losses_ND, domains, self.run.target),
            self.config.concentration,
            self.run.seed,
        )


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
    """Learn from N runs, and simulate; ValueError if there are fewer runs than the folds take.

    `shares_ND` are their mixes over D trained domains, `losses_NE` their losses of E domains in nats per token. Mixes
    are simulated from a Dirichlet distribution of this concentration; `seed` is of the folds and the simulation.
    """
    from scipy.stats import spearmanr
    from sklearn.model_selection import KFold, cross_val_predict

    if len(shares_ND) < _NUM_FOLDS:
        raise ValueError(f"search: {len(shares_ND)} finished runs; a regression takes at least {_NUM_FOLDS}")
    measured_N = score(losses_NE)
    models = _make_models(seed)
    folds = KFold(_NUM_FOLDS, shuffle=True, random_state=narrow_seed(seed))
    unseen = {
        name: score(_as_rows(cross_val_predict(model, shares_ND, losses_NE, cv=folds)))
        for name, model in models.items()
    }
    errors = {name: float(np.sqrt(np.mean((of_N - measured_N) ** 2))) for name, of_N in unseen.items()}
    chosen = min(errors, key=errors.__getitem__)
    model = models[chosen].fit(shares_ND, losses_NE)
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


def _as_rows(losses: Array) -> Array:
    """Of a single domain, scikit-learn returns a vector."""
    return losses.reshape(len(losses), -1)


def _make_models(seed: int) -> dict[str, Any]:
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import LinearRegression, RidgeCV
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    trees = GradientBoostingRegressor(n_estimators=200, learning_rate=0.05, max_depth=3, random_state=narrow_seed(seed))
    return {
        "linear": LinearRegression(),
        "quadratic": make_pipeline(PolynomialFeatures(2), StandardScaler(), RidgeCV(np.logspace(-4, 2, 13))),
        "boosted trees": MultiOutputRegressor(trees),
    }


def describe(prediction: Prediction, domains: Sequence[str]) -> list[str]:
    mix = ", ".join(f"{name} {share:.1%}" for name, share in zip(domains, prediction.shares_D, strict=True))
    errors = ", ".join(f"{name} {error:.4f}" for name, error in prediction.errors.items())
    return [
        f"Predicted best mix: {mix}; predicted metric {prediction.score:.4f}.",
        f"Regression: {prediction.regression}; rank correlation {prediction.rank_correlation:.2f} on unseen runs. "
        f"Errors on unseen runs: {errors}.",
    ]
