"""The stages of a plan in order, with their data, and the folder of each: named by all that its result depends on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.plan import PlanConfig, find_parent, stage_run
from orchestrator.config.run import RunConfig
from orchestrator.config.stages import StageConfig, StartConfig
from orchestrator.runs.lock import bound_settings
from workers.fingerprint import fingerprint

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
