"""The cells of a study, and the trainings behind them: what cells share is trained once.

    single           S(base, sub(D, k)) for each domain D
    mix              S(base, sub(all, k))
    fixed_general    S(base, specialised + sub(general, k))
    fixed_special    S(base, general + sub(specialised, k))
    small_general    S(base, sub(general, 1/64) + sub(specialised, k))
    strategies       see sweeps/stages; sequential takes the domains in the study's order, specialised first

The paper's grid (two specialised domains, one general, five k, one seed) has 43 cells. 38 of them differ, and they are
made of 40 trainings: mix at k = 1, fixed_general at 1, fixed_special at 1 and multi_task are one run; small_general at
1 is fixed_general at 1/64, and at 1/64 it is mix; sequential begins with the single run on all of its first domain;
and mixed_sequential and every dmt begin with the same first stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from orchestrator.config.plan import PlanConfig
from orchestrator.config.predefined_plans import Plan, expand
from orchestrator.config.sections import Grid, Strategy, StudyConfig
from orchestrator.config.stages import DmtPlan, MixedSequentialPlan, MultiTaskPlan, SequentialPlan, StageConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.sweeps.run import StageNode
from orchestrator.sweeps.stages.chain import Prepare, plan_stages

_MAX_LABEL_LENGTH = 48


@dataclass(frozen=True)
class StudyCell:
    """One entry of a grid, or one strategy, at one k and seed."""

    group: Grid | Strategy
    subject: str
    """The domain of a `single` cell; else the domains that k applies to, joined by +."""
    k: float
    """1 for the strategies that have none."""
    seed: int
    config: PlanConfig
    """As a plan of stages."""

    @property
    def name(self) -> str:
        return f"{self.group} {self.subject} k={format_fraction(self.k)} seed={self.seed}"


def build_cells(config: SweepConfig) -> list[StudyCell]:
    """All cells of the configuration's study, duplicates included."""
    study = config.study
    if study is None:
        raise ValueError("study: is missing; say what to compare, e.g. study: {specialised: [math], general: [chat]}")
    cells = []
    for number, seed in enumerate(study.seeds):
        data = config.data.replaced(sample_seed=config.data.sample_seed + number)
        seeded = config.plan.replaced(seed=seed, data=data)
        for group, subject, k, stages in _chains(study):
            named = [stage.replaced(name=_label(stage.domains or {})) for stage in _split(stages, study)]
            cells.append(StudyCell(group, subject, k, seed, seeded.replaced(stages=named)))
    return cells


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the digests of its stages, first to last."""

    cell: StudyCell
    chain: tuple[str, ...]


@dataclass(frozen=True)
class Trainings:
    """What has to be trained for all cells."""

    cells: list[PlannedCell]
    nodes: dict[str, StageNode]
    """By digest, each once and after the one that it starts from."""

    @property
    def distinct_chains(self) -> set[tuple[str, ...]]:
        return {planned.chain for planned in self.cells}


def plan_trainings(cells: Sequence[StudyCell], prepare: Prepare) -> Trainings:
    """Prepare the data of all cells and find what they share."""
    planned_cells: list[PlannedCell] = []
    nodes: dict[str, StageNode] = {}
    for cell in cells:
        chain = plan_stages(cell.config, prepare)
        for planned in chain:
            if planned.digest not in nodes:
                parent = None if planned.parent is None else nodes[chain[planned.parent].digest]
                nodes[planned.digest] = StageNode(planned, parent)
        planned_cells.append(PlannedCell(cell, tuple(planned.digest for planned in chain)))
    return Trainings(planned_cells, nodes)


def format_fraction(k: float) -> str:
    """`1/256` where it is such a number, else its decimal form."""
    ratio = Fraction(k).limit_denominator(4096)
    return str(ratio) if float(ratio) == k else f"{k:g}"


def _chains(study: StudyConfig) -> list[tuple[Grid | Strategy, str, float, list[StageConfig]]]:
    special, general = list(study.specialised), list(study.general)
    chains: list[tuple[Grid | Strategy, str, float, list[StageConfig]]] = []
    for k in study.k:
        mixed: dict[Grid, tuple[list[str], float, float]] = {  # what k applies to; amounts of special and of general
            "mix": ([*special, *general], k, k),
            "fixed_general": (general, 1, k),
            "fixed_special": (special, k, 1),
            "small_general": (special, k, study.small_fraction),
        }
        for grid in study.grids if k > 0 else []:
            if grid == "single":
                chains += [(grid, name, k, [_stage({name: k})]) for name in (*special, *general)]
            else:
                subject, of_special, of_general = mixed[grid]
                domains = dict.fromkeys(special, of_special) | dict.fromkeys(general, of_general)
                chains.append((grid, "+".join(subject), k, [_stage(domains)]))
        if "dmt" in study.strategies:
            chains.append(("dmt", "+".join(special), k, expand(DmtPlan(specialised=special, general=general, k=k))))
    plans: dict[Strategy, Plan] = {
        "multi_task": MultiTaskPlan(domains=[*special, *general]),
        "sequential": SequentialPlan(order=[*special, *general]),
        "mixed_sequential": MixedSequentialPlan(specialised=special, general=general),
    }
    everything = "+".join([*special, *general])
    return chains + [(name, everything, 1.0, expand(plan)) for name, plan in plans.items() if name in study.strategies]


def _stage(domains: dict[str, float]) -> StageConfig:
    return StageConfig(name="stage", start="base", domains=domains)


def _split(stages: Sequence[StageConfig], study: StudyConfig) -> list[StageConfig]:
    """The stages with the cell's budget: epochs are each stage's own, steps and tokens are divided evenly."""
    budget: dict[str, float | int | None] = {"epochs": study.epochs}
    for key in ("max_steps", "max_tokens"):
        total = getattr(study, key)
        budget[key] = total and max(1, round(total / len(stages)))
    return [stage.replaced(**budget) for stage in stages]


def _label(domains: Mapping[str, float]) -> str:
    """A stage's name by its content, safe as a file name: `math-1_256.code-1_256`."""
    amounts = {name: format_fraction(amount).replace("/", "_") for name, amount in sorted(domains.items()) if amount}
    label = ".".join(f"{name}-{amount}" for name, amount in amounts.items())
    return label if len(label) <= _MAX_LABEL_LENGTH else f"{label[: _MAX_LABEL_LENGTH - 2]}.."
