"""The stages of a plan in order, with their data, and the folder of each, named by all that its result depends on; and
what a plan leaves to be read: the lines of stages.json, and one summary of the whole chain.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import BaseModel, RootModel

from orchestrator.config.plan import PlanConfig, find_parent, stage_run
from orchestrator.config.run import RunConfig
from orchestrator.config.stages import StageConfig, StartConfig
from orchestrator.runs.folder import read_run
from orchestrator.runs.lock import bound_settings
from orchestrator.runs.records import DomainSummary, LossCourse, RunSummary
from orchestrator.runs.summary import summarise
from orchestrator.runs.verdict import decide, domain_course
from workers.bounded import read_model
from workers.fingerprint import fingerprint
from workers.validation.domain_losses import mean_loss

if TYPE_CHECKING:
    from orchestrator.prepare.token_stores import DomainStores

Prepare = Callable[[RunConfig], Mapping[str, "DomainStores"]]
"""Token stores of every domain of a run, made or found."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage whose data is prepared."""

    stage: StageConfig
    run: RunConfig
    """As an ordinary run; `started_from` gives it its name and its start."""
    stores: Mapping[str, "DomainStores"]
    digest: str
    """Of everything that its result depends on: settings, stores, and the stage that it starts from."""
    parent: int | None
    """Place in the plan of the stage that it starts from; None for the base model."""

    def find_folder(self) -> Path:
        """The folder that a plan with this very stage has begun, whatever that plan calls it, or a new one."""
        folder = self.run.output_dir
        begun = sorted(path for path in folder.glob(f"*-{self.digest}") if path.is_dir())
        return begun[0] if begun else folder / f"{self.stage.name}-{self.digest}"

    def started_from(self, parent_folder: Path | None, folder: Path) -> RunConfig:
        """The ordinary run in `folder`, which starts where the run in `parent_folder` ended; None: from the base."""
        start = None if parent_folder is None else StartConfig(run=parent_folder, optimizer=self.stage.optimizer)
        return self.run.replaced(name=folder.name, start=start)


def plan_stages(config: PlanConfig, prepare: Prepare) -> list[PlannedStage]:
    """All stages of a run, with their data prepared."""
    planned: list[PlannedStage] = []
    for index, stage in enumerate(config.stage_list):
        run = stage_run(config, stage)
        stores = prepare(run)
        parent = find_parent(config.stage_list, index)
        start = None if parent is None else {"digest": planned[parent].digest, "optimizer": stage.optimizer}
        planned.append(PlannedStage(stage, run, stores, digest_run(run, stores, start), parent))
    return planned


def digest_run(run: RunConfig, stores: Mapping[str, "DomainStores"], start: dict[str, str] | None = None) -> str:
    """A name for a run's result, by everything that it depends on but the run's own name; `start`: if not the base."""
    settings = bound_settings(run)
    settings.pop("name")  # a plan may call it what it likes
    how = {"computed": run.reference.max_steps, "detected": run.detection.model_dump(mode="json")}
    identity = {
        "settings": settings,
        "measured before": {word: how[word] for word in run.mixing.words},
        "stores": {
            name: [store.fingerprint for store in (domain.train, domain.eval) if store]
            for name, domain in stores.items()
        },
        "start": start,
    }
    return fingerprint(identity)


class DomainAmount(BaseModel):
    """What a stage trains on of one domain, once through."""

    num_examples: int
    num_rows: int
    num_tokens: int


class StageRecord(BaseModel):
    """An entry of stages.json: one finished stage."""

    name: str
    folder: Path
    digest: str
    starts_from: Path | None
    """Folder of the stage before; None for the base model."""
    domains: dict[str, DomainAmount]
    """The domains that it trained on."""
    steps: int
    num_rows: int
    """Rows trained on, all passes together."""
    num_tokens: int
    """Tokens trained on, all passes together."""
    seconds: float
    loss_nats: dict[str, float | None]
    """Held-out loss of every domain at the end, in nats per token."""

    @classmethod
    def of(cls, planned: PlannedStage, folder: Path) -> Self:
        """The record of a stage whose run is finished."""
        run = read_run(folder)
        result = summarise(run)
        start = run.setting("start", "run")
        return cls(
            name=planned.stage.name,
            folder=folder,
            digest=planned.digest,
            starts_from=start and Path(start),
            domains={
                name: DomainAmount.model_validate(store.train, from_attributes=True)
                for name, store in planned.stores.items()
                if store.train is not None
            },
            steps=result.steps,
            num_rows=result.steps * planned.run.training.global_batch_size,
            num_tokens=result.num_tokens,
            seconds=result.seconds,
            loss_nats={name: domain.loss_nats_end for name, domain in result.domains.items()},
        )


class _Stages(RootModel[list[StageRecord]]):
    """stages.json."""


def read_records(folder: Path) -> list[StageRecord]:
    """The chain of a plan, as its stages.json tells it."""
    return read_model(folder / "stages.json", _Stages).root


def summarise_chain(name: str, folders: Sequence[Path]) -> RunSummary:
    """One summary of a chain of finished runs: starts are the first one's, ends the last one's, amounts are added."""
    runs = [read_run(folder) for folder in folders]
    results = [summarise(run) for run in runs]
    first, last = results[0], results[-1]
    seconds, num_tokens = sum(r.seconds for r in results), sum(r.num_tokens for r in results)
    # What the plan began with and what it ended with: its result is its end, whatever was better on the way.
    ends = [*runs[0].feedback[:1], *runs[-1].feedback[-1:]]
    courses = {domain: domain_course(domain, ends) for domain in last.domains}
    judged_E = np.array([mean_loss(map(feedback.loss_nats, courses)) for feedback in ends])
    has_diverged = last.divergence is not None or bool(last.not_finite)
    return RunSummary(
        name=name,
        steps=sum(result.steps for result in results),
        seconds=seconds,
        num_tokens=num_tokens,
        tokens_per_second=num_tokens / seconds if seconds else 0.0,
        weights_versions=sum(result.weights_versions for result in results),
        verdict=decide(ends, judged_E, courses, has_diverged=has_diverged, has_broken_off=False),
        started_from=first.started_from,
        not_finite=last.not_finite,
        started_at=first.started_at,
        ended_at=last.ended_at,
        mixing_type=", ".join(dict.fromkeys(result.mixing_type for result in results)),
        best=None,
        mean_loss_nats=_course(first.mean_loss_nats, last.mean_loss_nats),
        worst_loss_nats=_course(first.worst_loss_nats, last.worst_loss_nats),
        domains={
            domain: _summarise_domain([result.domains[domain] for result in results], course.is_worse_than_base)
            for domain, course in courses.items()
        },
    )


def _course(first: LossCourse, last: LossCourse) -> LossCourse:
    return LossCourse(start=first.start, best=last.best, end=last.end)


def _summarise_domain(stages: Sequence[DomainSummary], is_worse_than_base: bool | None) -> DomainSummary:
    """Shares, epochs and what was lowest are of single stages and their stores: a chain has none."""
    return DomainSummary(
        loss_nats_start=stages[0].loss_nats_start,
        loss_nats_best=stages[-1].loss_nats_best,
        loss_nats_end=stages[-1].loss_nats_end,
        is_worse_than_base=is_worse_than_base,
        rows_seen=sum(stage.rows_seen or 0 for stage in stages),
        num_bad_rows=stages[-1].num_bad_rows,
    )
