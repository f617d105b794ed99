"""Runs of nodes -> Spec and Vers, by held-out losses or by task scores from files. Pure but for reading the files.

By losses, of the speciality's domains and of the others:

    Spec = gain / gain of full fine-tuning, gain = mean of (base loss - end loss) over the speciality's domains
    Vers = mean of exp(base loss - end loss) over the others: how probable their held-out tokens still are under the
           model, relative to the base

By files: Spec = speciality / speciality of full fine-tuning, Vers = versatility / versatility of the base.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from orchestrator.runs.records import DomainSummary
from orchestrator.sweeps.coarse.tree import CandidateScore

SCORES_FILE = "task_scores.json"


class ModelScores(BaseModel):
    """task_scores.json: what was measured on a model, larger is better."""

    speciality: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    versatility: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MissingScoresError(RuntimeError):
    """Models wait for their scores; the message names them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        lines = "\n".join(f"  {folder / SCORES_FILE}" for folder in folders)
        super().__init__(
            'write {"speciality": ..., "versatility": ...} of each model into these files, then start the same command '
            f"again:\n{lines}"
        )


def read_task_scores(folders: Sequence[Path]) -> list[ModelScores]:
    """The scores beside each model.

    Raises:
        MissingScoresError: some are not there yet.
        ValueError: a file is not such a file.
    """
    if missing := [folder for folder in folders if not (folder / SCORES_FILE).exists()]:
        raise MissingScoresError(missing)
    scores = []
    for folder in folders:
        path = folder / SCORES_FILE
        try:
            scores.append(ModelScores.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise ValueError(f'{path}: not {{"speciality": number, "versatility": number}}: {error}') from None
    return scores


def speciality_gain(domains: Mapping[str, DomainSummary], speciality: Sequence[str]) -> float:
    """Mean fall of the speciality's held-out losses against the base model, in nats per token."""
    return _mean([_fall(domains[name]) for name in speciality])


def versatility_left(domains: Mapping[str, DomainSummary], speciality: Sequence[str]) -> float:
    """Mean over the other domains of the probability of their held-out tokens relative to the base model's."""
    return _mean([math.exp(_fall(domain)) for name, domain in domains.items() if name not in speciality])


def score_by_losses(spec_gain: float, vers_left: float, full_gain: float) -> CandidateScore:
    """A node's score; ValueError if full fine-tuning gained nothing, so that there is nothing to measure it by."""
    if full_gain <= 0:
        raise ValueError(
            f"full fine-tuning changed the speciality's held-out loss by {-full_gain:+.4f} nats: nothing is gained "
            "that a node could be compared with; train longer or with another learning rate"
        )
    return CandidateScore(spec=spec_gain / full_gain, vers=vers_left)


def score_by_tasks(node: ModelScores, full: ModelScores, base: ModelScores) -> CandidateScore:
    """A node's score; ValueError if a score to divide by is 0."""
    if full.speciality <= 0 or base.versatility <= 0:
        raise ValueError(
            f"full fine-tuning's speciality {full.speciality:g} and the base's versatility {base.versatility:g} must "
            "be above 0: scores are relative to them"
        )
    return CandidateScore(spec=node.speciality / full.speciality, vers=node.versatility / base.versatility)


def mean_scores(scores: Sequence[ModelScores]) -> ModelScores:
    return ModelScores(
        speciality=_mean([score.speciality for score in scores]),
        versatility=_mean([score.versatility for score in scores]),
    )


def _fall(domain: DomainSummary) -> float:
    start, end = domain.loss_nats_start, domain.loss_nats_end
    if start is None or end is None:
        raise ValueError("a held-out loss is missing at the start or the end of a run; look at its feedback/")
    return start - end


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
