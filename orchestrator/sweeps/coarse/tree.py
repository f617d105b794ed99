"""CoFiTune's search for where to train: which layers, and which modules in them (arXiv 2404.10306). No Ray, no
torch; the caller gives a function that scores nodes.

    node    (range of layers, set of modules): fine-tune only that on the speciality's data, everything else frozen
    Uni     Spec + weight * Vers of a node
    step 1  every broad range (0, 1/2], (1/4, 3/4], (1/2, 1] with attention and with feed-forward; the best are kept
    step 2  the halves of each of them, with both; the best are kept
    step 3  in each of those all sets of modules; the best node wins
    cost    at most 6 + 4 + 3 = 13 trainings where one range is kept; fewer where branches share a half

Certain of the paper: ranges, the order of the search, Uni = Spec + Vers. The sets of step 3 are a reading of it. Ours:
`beam_width`, the `tie_margin` (scores of single trainings are noisy: a range whose Uni is as good as the best one's is
not dropped, it becomes a separate branch), the weight, and that Spec and Vers are normalised so that both mean
something between 0 and 1, where the paper adds raw benchmark scores. By held-out losses, of the speciality's domains
and of the others:

    Spec = gain / gain of full fine-tuning, gain = mean of (base loss - end loss) over the speciality's domains
    Vers = mean of exp(base loss - end loss) over the others: how probable their held-out tokens still are under the
           model, relative to the base

By files: Spec = speciality / speciality of full fine-tuning, Vers = versatility / versatility of the base.

Where it fails: the search is greedy, so a range whose halves are good only together is lost; with few steps all nodes
look alike and the noise chooses (use several seeds, look at the Pareto set, not only at the winner); and nodes of few
parameters may need a larger learning rate than those of many, which get the same here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from orchestrator.runs.records import DomainSummary
from workers.bounded import UnreadableFileError, read_model

Range = tuple[float, float]
"""(from, to] of the depth, in fractions."""

BROAD_RANGES: tuple[Range, ...] = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))
LAYER_STEP_SETS: tuple[tuple[str, ...], ...] = (("attention",), ("feed_forward",))
MODULE_STEP_SETS = (*LAYER_STEP_SETS, ("up",), ("down",), ("attention", "feed_forward"))
SCORES_FILE = "task_scores.json"


@dataclass(frozen=True, order=True)
class Candidate:
    """What a training moves: modules of a range of layers."""

    layers: Range
    modules: tuple[str, ...]


@dataclass(frozen=True)
class CandidateScore:
    """How much is learned of the speciality, and how much is left of all else; 1 is full fine-tuning's, the base's."""

    spec: float
    vers: float

    def uni(self, weight: float) -> float:
        return self.spec + weight * self.vers


ScoreCandidates = Callable[[Sequence[Candidate]], Mapping[Candidate, CandidateScore]]
"""Trains and scores nodes, all of them side by side if it can."""


@dataclass(frozen=True)
class SearchStep:
    """One step: the nodes that it compared, and the nodes that it kept (the last step: the winner)."""

    nodes: list[Candidate]
    kept: list[Candidate]


@dataclass
class SearchResult:
    """Everything that was seen."""

    versatility_weight: float
    scores: dict[Candidate, CandidateScore] = field(default_factory=dict)
    steps: list[SearchStep] = field(default_factory=list)

    @property
    def winner(self) -> Candidate:
        return self.steps[-1].kept[0]

    def uni(self, node: Candidate) -> float:
        return self.scores[node].uni(self.versatility_weight)


def search(
    score: ScoreCandidates,
    *,
    versatility_weight: float = 1.0,
    beam_width: int = 1,
    tie_margin: float = 0.0,
    module_sets: Sequence[tuple[str, ...]] = MODULE_STEP_SETS,
) -> SearchResult:
    """Search the tree; `score` is called once a step, with the nodes that were not scored before.

    A step keeps `beam_width` ranges, and others whose Uni is at most `tie_margin` below the best one's; the last step
    compares the `module_sets`.
    """
    result = SearchResult(versatility_weight)
    ranges: Sequence[Range] = BROAD_RANGES
    for _ in range(2):
        nodes = [Candidate(layers, modules) for layers in ranges for modules in LAYER_STEP_SETS]
        _score_new(result, nodes, score)
        best = [max((node for node in nodes if node.layers == layers), key=result.uni) for layers in ranges]
        kept = keep(best, result.uni, beam_width, tie_margin)
        result.steps.append(SearchStep(nodes, kept))
        narrow = list(dict.fromkeys(half for node in kept for half in halves(node.layers)))
        ranges = narrow if len(result.steps) == 1 else [node.layers for node in kept]
    nodes = [Candidate(layers, modules) for layers in ranges for modules in module_sets]
    _score_new(result, nodes, score)
    result.steps.append(SearchStep(nodes, [max(nodes, key=result.uni)]))
    return result


def keep(
    nodes: Iterable[Candidate], uni: Callable[[Candidate], float], beam_width: int, tie_margin: float
) -> list[Candidate]:
    """The best `beam_width` nodes and every other one within `tie_margin` of the best, best first."""
    ranked = sorted(nodes, key=uni, reverse=True)
    return [node for place, node in enumerate(ranked) if place < beam_width or uni(ranked[0]) - uni(node) <= tie_margin]


def halves(layers: Range) -> tuple[Range, Range]:
    middle = (layers[0] + layers[1]) / 2
    return (layers[0], middle), (middle, layers[1])


def pareto_set(scores: Mapping[Candidate, CandidateScore]) -> list[Candidate]:
    """The nodes that no other one is better than in Spec and Vers at once, highest Spec first."""
    ranked = sorted(scores, key=lambda node: (-scores[node].spec, -scores[node].vers))
    best, result = float("-inf"), []
    for node in ranked:
        if scores[node].vers > best:
            best = scores[node].vers
            result.append(node)
    return result


def _score_new(result: SearchResult, nodes: Sequence[Candidate], score: ScoreCandidates) -> None:
    new = [node for node in dict.fromkeys(nodes) if node not in result.scores]
    if new:
        result.scores |= {node: value for node, value in score(new).items() if node in new}
    if missing := [node for node in new if node not in result.scores]:
        raise ValueError(f"no score for {missing}")


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


def read_task_scores(folders: Sequence[Path]) -> dict[Path, ModelScores]:
    """The scores beside each model.

    Raises:
        MissingScoresError: some are not there yet.
        ValueError: a file is not such a file.
    """
    if missing := [folder for folder in folders if not (folder / SCORES_FILE).exists()]:
        raise MissingScoresError(missing)
    scores = {}
    for folder in folders:
        path = folder / SCORES_FILE
        try:
            scores[folder] = read_model(path, ModelScores)
        except UnreadableFileError as error:
            raise ValueError(f'{path}: not {{"speciality": number, "versatility": number}}: {error.reason}') from None
    return scores


def gain_and_rest(domains: Mapping[str, DomainSummary], speciality: Sequence[str]) -> tuple[float, float]:
    """Mean fall of the speciality's held-out losses against the base model, in nats per token; and mean over the other
    domains of the probability of their held-out tokens relative to the base model's."""
    gain = _mean([_fall(domains[name]) for name in speciality])
    return gain, _mean([math.exp(_fall(domain)) for name, domain in domains.items() if name not in speciality])


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
