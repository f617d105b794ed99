"""The generations of a population, trained: each member is a plan of stages, one longer in every generation.

So members share what they have in common, the best of them is a configuration like any other, and what a search that
was killed has trained is found by the digests of its stages.
"""

import math
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.config.errors import ConfigError
from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.config.search import PopulationConfig
from orchestrator.runs.folder import read_run
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.stages.nodes import read_records
from orchestrator.sweeps.stages.train import train_runs
from orchestrator.sweeps.tune.population import Lineage, first_generation, next_generation
from orchestrator.sweeps.tune.results import Evaluation, TrialRecord
from orchestrator.sweeps.tune.trial import Trials
from orchestrator.sweeps.work import Work
from workers.fingerprint import fingerprint


def train_generations(
    trials: Trials, settings: PopulationConfig, work: Work
) -> tuple[list[TrialRecord], dict[str, PlanConfig]]:
    """Train the population to its end.

    Returns: the members of the last generation with their whole course, and the plan of each by its name.
    """
    seed = trials.base.seed
    lineages = first_generation(trials.space, settings.population, seed)
    known: dict[str, PlanConfig] = {}
    for generation in range(1, settings.generations + 1):
        plans = [_plan(trials, lineage, settings.generations) for lineage in lineages]
        before, known = known, {plan.name: plan for plan in plans if plan is not None}
        work.console.print(f"generation {generation} of {settings.generations}: {len(known)} members", highlight=False)
        failures = train_runs(list(known.values()), work, SideBySide(work.console))
        _drop_models(before.values())
        records = [_record(trials, lineage, plan, failures) for lineage, plan in zip(lineages, plans, strict=True)]
        if generation < settings.generations:
            scores = [math.inf if record.score is None else record.score for record in records]
            lineages = next_generation(lineages, scores, trials.space, settings, seed)
    _drop_models(known.values())
    return records, known


def _plan(trials: Trials, lineage: Lineage, num_generations: int) -> PlanConfig | None:
    """The lineage as a plan of stages; None where its points break the run's own rules."""
    base = trials.base
    assert base.training.max_steps is not None  # the settings are refused without
    stages: list[dict[str, Any]] = []
    try:
        for generation, point in enumerate(lineage):
            run = trials.run_of(point)
            stages.append(
                {
                    "name": f"generation-{generation + 1}",
                    "mixing": run.mixing.model_dump(mode="json", exclude_unset=True),
                    "learning_rate": run.training.learning_rate,
                    "warmup_fraction": run.training.warmup_fraction,
                    "max_steps": base.training.max_steps // num_generations,
                    "optimizer": "kept" if generation else "fresh",
                    "seed": base.seed + generation,  # or every generation would see the same rows first
                }
            )
    except ConfigError:
        return None
    given = base.model_dump(mode="json", exclude_unset=True, include=set(RunConfig.model_fields))
    name = f"member-{fingerprint([given, stages])}"
    return PlanConfig.model_validate(given | {"name": name, "stages": stages})


def _record(trials: Trials, lineage: Lineage, plan: PlanConfig | None, failures: Mapping[str, str]) -> TrialRecord:
    record = TrialRecord(
        name=plan.name if plan else "-",
        folder=plan.folder if plan else trials.base.output_dir,
        changes={
            f"{key} ({generation})": value
            for generation, point in enumerate(lineage, start=1)
            for key, value in trials.space.changes(point).items()
        },
        state="failed",
        reason=failures.get(plan.name, "") if plan else "the values do not fit together",
        course=[],
        losses_nats={},
    )
    if plan is None or record.reason:
        return record
    stages = read_records(plan.folder)
    course: list[Evaluation] = []
    for stage in stages:
        run = read_run(stage.folder)
        before = course[-1].step if course else 0
        trained = [feedback for feedback in run.feedback if feedback.step > 0]
        course += [Evaluation(step=before + each.step, score=trials.score(each)) for each in trained]
    finished = {"state": "finished", "course": course, "losses_nats": stages[-1].loss_nats}
    return TrialRecord(**(dict(record) | finished))


def _drop_models(plans: Iterable[PlanConfig]) -> None:
    """Take away models and checkpoints of plans whose successors are trained."""
    for plan in plans:
        if (plan.folder / "stages.json").exists():
            for record in read_records(plan.folder):
                for part in ("checkpoints", "model"):
                    shutil.rmtree(record.folder / part, ignore_errors=True)
