"""VersaTune: domains with more left to learn get a larger share; a target domain can be expanded (arXiv 2411.11266).

    gamma_j = max((l_j - l_ref_j) / l_j, 0)                  learnable potential, in [0, 1)
    P_j    <- P_j * (1 + sigma * gamma_j) / sum_i ...        at every evaluation, the base model's included

l_j is the held-out loss of the current model, l_ref_j the best held-out loss of a model fine-tuned on that domain
alone. Equal potentials leave the shares unchanged. That is also how the method saturates: references that have
memorised their domains (l_ref near 0) make every gamma 1 and the rule does nothing, which is why references are
measured on held-out rows.

Domain expansion: with a `target` e, its share is then raised as long as it gains more than the others lose.

    phi_j = max((l_j(t) - l_j(t-1)) / l_j(t-1), 0)           forgetting degree, against the previous evaluation
    raise P_e by delta where  mean_(j != e) phi_j < epsilon * gamma_e

Otherwise it is not raised, and the next evaluation decides again. The raises stop automatically: a target at its
reference loss has gamma 0. Forgetting is measured against the previous evaluation only, so the rule does not see a slow
drift; the report shows every loss against the base model.

Stated in the paper: gamma and the forgetting degree. The updates and the condition of a raise are reconstructions;
sigma, delta and epsilon are ours, and so are the exponential form (equal to first order), the floor, and the cap of a
raise. `loss` is the update of the authors' released code: P_j * exp(l_j), without references.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator

from orchestrator.mixing.base import MixingAlgorithm, MixingConfig, Shares, initial_shares, normalise, raise_to_floor
from orchestrator.mixing.needs import Initial, Needs, ReferenceLosses, TargetDomain
from workers.contracts import DomainFeedback

_LARGEST_DEGREE = 1e9  # for a loss that rises from 0, whose degree would be infinite


class VersaTuneConfig(MixingConfig):
    """VersaTune's feedback loop on the domains' learnable potentials."""

    type: Literal["versatune"] = "versatune"
    """Raise the share of domains with more left to learn."""
    initial: Initial = "proportional"
    """Shares before any feedback: `uniform`, `proportional`, `detected` (the base model's own distribution, as in the
    paper), the .json file that `raymix detect` wrote, or a share for each domain."""
    reference: ReferenceLosses = "computed"
    """Reference loss of each domain in nats per token; or the JSON file that `raymix reference` wrote; or `computed`,
    which fine-tunes on each domain alone, once, before the run."""
    sigma: Annotated[float, Field(gt=0)] = 0.5
    """Magnitude of an adjustment."""
    update: Literal["ratio", "exponential", "loss"] = "ratio"
    """`ratio` multiplies by 1 + sigma * gamma, `exponential` by exp(sigma * gamma), `loss` by exp(loss)."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Smallest share of a domain."""
    target: TargetDomain | None = None
    """Domain to expand: its share is raised as long as the others forget little. By default, none is."""
    delta: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Size of a raise of the target's share, which is at most 1 minus the floors of the others."""
    epsilon: Annotated[float, Field(gt=0)] = 1.0
    """Mean forgetting of the others that a raise may cost, as a multiple of the target's learnable potential."""

    @model_validator(mode="after")
    def _target_has_a_potential(self) -> Self:
        if self.target is not None and self.update == "loss":
            raise ValueError(
                "target: a raise is weighed against learnable potential, which `update: loss` does not have"
            )
        return self

    @property
    def needs(self) -> Needs:
        return replace(super().needs, references=None) if self.update == "loss" else super().needs

    def check_domains(self, names: Sequence[str]) -> None:
        super().check_domains(names)
        if self.floor * len(names) > 1.0:
            raise ValueError(floor_fault(self.floor, len(names)))


class VersaTune(MixingAlgorithm[VersaTuneConfig]):
    """The loop's state is the shares and the losses of the previous evaluation; the rest is kept for display."""

    state_fields = ("shares", "gamma", "phi", "losses", "is_raised")

    def __init__(self, config: VersaTuneConfig, domains: Any) -> None:
        super().__init__(config, domains)
        self.reference: dict[str, float] = {}
        if config.update != "loss":
            losses = cast(Mapping[str, float], config.reference)  # numbers by the time an algorithm is built
            self.reference = {name: losses[name] for name in self.names}
        self.shares = self.initial_weights()
        self.gamma = dict.fromkeys(self.names, 0.0)
        self.phi = dict.fromkeys(self.names, 0.0)
        self.losses: dict[str, float] | None = None
        self.is_raised = False

    def initial_weights(self) -> Shares:
        return raise_to_floor(initial_shares(self.config.initial, self.domains, self.config.unit), self.config.floor)

    def observe(self, feedback: DomainFeedback) -> Shares:
        losses = {name: feedback.loss_nats(name) for name in self.names}
        if self.config.update == "loss":
            factor = self._exponentials(losses)
        else:
            sigma = self.config.sigma
            self.gamma = {name: learnable_potential(loss, self.reference[name]) for name, loss in losses.items()}
            if self.config.update == "ratio":
                factor = {name: 1.0 + sigma * gamma for name, gamma in self.gamma.items()}
            else:
                factor = self._exponentials({name: sigma * gamma for name, gamma in self.gamma.items()})
        raised = normalise({name: self.shares[name] * factor[name] for name in self.names})
        self.shares = raise_to_floor(raised, self.config.floor)
        if self.config.target is not None:
            self._expand(self.config.target, losses)
        return dict(self.shares)

    def adopt(self, shares: Shares) -> None:
        self.shares = dict(shares)

    def _expand(self, target: str, losses: dict[str, float]) -> None:
        before = self.losses or losses
        self.phi = {name: forgetting_degree(loss, before[name]) for name, loss in losses.items()}
        self.losses = losses
        self.is_raised = is_raise_due(target, self.phi, self.gamma, self.config.epsilon)
        if self.is_raised:
            self.shares = raise_share(self.shares, target, self.config.delta, self.config.floor)

    def _exponentials(self, values: dict[str, float]) -> dict[str, float]:
        """exp(value) up to a common factor, which normalising cancels: the largest value with a share becomes 1."""
        largest = max(value for name, value in values.items() if self.shares[name] > 0)
        return {name: math.exp(min(value - largest, 0.0)) for name, value in values.items()}

    def concerns(self, feedback: DomainFeedback) -> list[str]:
        """Domains whose reference is no better than the initial model, so that their gamma is 0."""
        losses = {name: feedback.loss_nats(name) for name in self.reference}
        off = [name for name, loss in losses.items() if loss <= self.reference[name]]
        if not off:
            return []
        listed = ", ".join(f"{name} {self.reference[name]:.3f} (initial loss {losses[name]:.3f})" for name in off)
        what = "these shares change only when those of other domains do, unless a loss rises above its reference"
        if len(off) == len(losses):
            what = "the shares stay unchanged, as in a fixed mixture, until a loss rises above its reference"
        elif self.config.target in off:
            what += f", and the target {self.config.target} is not raised"
        return [
            f"mixing.reference is not below the loss of the model that training starts from: {listed}. The learnable "
            f"potential gamma of these domains is 0, so versatune ({self.config.update}) has no signal for them: "
            f"{what}. Training on such a domain alone did not help: lower training.learning_rate, raise "
            "reference.max_steps, or give other losses as mixing.reference"
        ]

    def metrics(self) -> dict[str, float]:
        """gamma and reference loss of each domain; with a target also phi, and 1 if its share was raised."""
        if self.config.update == "loss":
            return {}
        values = {f"gamma/{name}": gamma for name, gamma in self.gamma.items()}
        values |= {f"reference_nats/{name}": loss for name, loss in self.reference.items()}
        if self.config.target is not None:
            values |= {f"phi/{name}": phi for name, phi in self.phi.items()}
            values[f"raised/{self.config.target}"] = float(self.is_raised)
        return values


def floor_fault(floor: float, num_domains: int) -> str:
    """The message about a floor that the domains cannot all have."""
    largest = math.floor(1e6 / num_domains) / 1e6  # rounded up, it would be rejected again
    return f"mixing.floor: {floor} for {num_domains} domains adds up to more than 1; use at most {largest:.6g}"


def learnable_potential(loss: float, reference: float) -> float:
    """gamma = max((l - l_ref) / l, 0), in [0, 1); a loss of 0 has nothing left to learn."""
    return max((loss - reference) / loss, 0.0) if loss > 0 else 0.0


def forgetting_degree(loss: float, previous: float) -> float:
    """phi: the loss's relative rise since the previous evaluation, at least 0."""
    if loss <= previous:
        return 0.0
    return min((loss - previous) / previous, _LARGEST_DEGREE) if previous > 0 else _LARGEST_DEGREE


def is_raise_due(target: str, phi: Mapping[str, float], gamma: Mapping[str, float], epsilon: float) -> bool:
    """Whether the others' mean forgetting is strictly less than epsilon times the target's learnable potential."""
    others = [degree for name, degree in phi.items() if name != target]
    return bool(others) and math.fsum(others) / len(others) < epsilon * gamma[target]


def raise_share(shares: Shares, target: str, delta: float, floor: float) -> Shares:
    """The target's share raised by delta, up to what the others' floors leave; they give up in proportion."""
    others = {name: share for name, share in shares.items() if name != target}
    raised = min(shares[target] + delta, 1.0 - floor * len(others))
    rest, given_up = 1.0 - raised, 1.0 - shares[target]
    if given_up <= 0.0 or rest <= 0.0:
        return {name: float(name == target) for name in shares}
    scaled = raise_to_floor({name: share / given_up for name, share in others.items()}, floor / rest)
    return {name: raised if name == target else scaled[name] * rest for name in shares}
