"""Reference losses: what a model reaches on a domain's held-out rows when it is fine-tuned on that domain alone.

Each domain is a separate training, several side by side as far as the cluster has room; its reference is the best
held-out loss on the way. Memorised training loss would be of no use: it is near 0 everywhere, and then every domain
looks as if it had the same left to learn. Results are kept by fingerprint and computed once.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.mixing import Measured, resolve_mixing
from orchestrator.mixing.base import Domain
from orchestrator.mixing.needs import REFERENCES
from orchestrator.mixing.uniform import UniformConfig
from orchestrator.prepare.importance import with_importance
from orchestrator.prepare.token_stores import DomainStores
from orchestrator.runs.folder import read_run
from orchestrator.runs.lock import hold_run
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.graph import run_graph
from orchestrator.sweeps.work import Node, Work, open_work
from orchestrator.tracking.watch import TrackedRun
from orchestrator.training.driver import ReadyRun, TrainingFailedError
from orchestrator.training.plan import build_plan, count_steps, domain_sizes
from orchestrator.training.resolve import write_references
from orchestrator.views.format import printable
from orchestrator.views.runs import ReferenceView
from workers.durable import remove_folder
from workers.events import log_event
from workers.fingerprint import fingerprint
from workers.storage.addresses import shown
from workers.training.plan import TrainingPlan

_FILE = "reference.json"
_NUM_EVALUATIONS = 10  # on the way; the best of them counts


def reference(config: RunConfig, console: Console) -> dict[str, float]:
    """Reference losses of every domain, in nats per token: computed, or found where they were computed before."""
    with open_work(config.output_dir / "references" / "raymix.log", frees_lost_workers=False) as work:
        work.start_ray([config.cluster])
        stores = work.data.stores(config)
        config = with_importance(config, stores, work.console, in_folder=False)
        return compute_references(config, stores, work)


def compute_references(
    config: RunConfig, stores: Mapping[str, DomainStores], work: Work, run_folder: Path | None = None
) -> dict[str, float]:
    """Best held-out loss of each domain, in nats per token; trained inside a Ray session where it is not known yet.

    A run that waits for them has progress and results noted in its `run_folder` as well.

    TrainingFailedError if one of them could not be trained.
    """
    nodes = {name: _ReferenceNode(config, name, stores, run_folder) for name in config.trained_domains}
    waiting = {name: node.plan for name, node in nodes.items() if not node.is_finished()}
    if waiting:
        what = f"fine-tuning on each of {len(waiting)} domains alone" if len(waiting) > 1 else "fine-tuning on 1 domain"
        work.console.print(f"reference losses: {what}", highlight=False)
    crew = SideBySide(work.console, lambda begun, num_runs: ReferenceView(waiting, work.console, run_folder))
    failures = run_graph([nodes[name] for name in waiting], work, crew)
    for name, node in nodes.items():
        if node.key in failures:
            raise TrainingFailedError(f"reference of domain {name!r}: {failures[node.key]}")
    return {name: REFERENCES.read(node.find_folder() / _FILE)[name] for name, node in nodes.items()}


class _ReferenceNode(Node):
    """The training on one domain alone, in a folder named by everything that its result depends on."""

    def __init__(
        self, config: RunConfig, name: str, stores: Mapping[str, DomainStores], run_folder: Path | None
    ) -> None:
        self.plan = plan_alone(config, name, stores)
        self.key = self.title = self.plan.run_id
        self.cluster = config.cluster.replaced(num_workers=config.reference.num_workers)
        self._sizes: list[Domain] = domain_sizes({name: stores[name]})
        self._run_folder = run_folder

    def find_folder(self) -> Path:
        return self.plan.folder

    def is_finished(self) -> bool:
        """Whether the reference is known; there is no summary."""
        return (self.plan.folder / _FILE).exists()

    @contextmanager
    def hold(self) -> Iterator[str]:
        with hold_run(self.plan.folder, f"{shown(self.plan.folder)}: another process trains this reference"):
            yield self.plan.run_id

    def resolve(self, run_id: str, work: Work) -> ReadyRun:
        tracked = TrackedRun(self.plan.folder, run_id)
        mixing = resolve_mixing(UniformConfig(), Measured(), list(self.plan.domains))
        return ReadyRun(self.plan, mixing, self._sizes, self.cluster, {}, tracked)

    def finish(self, run: ReadyRun, work: Work) -> None:
        told = _keep_best(self.plan)
        work.console.print(f"  {told}", markup=False, highlight=False, soft_wrap=True)
        if self._run_folder is not None:
            log_event(self._run_folder, 0, "reference", told)


def plan_alone(config: RunConfig, name: str, stores: Mapping[str, DomainStores]) -> TrainingPlan:
    """The run's plan cut down to one domain, in a folder named by everything that its result depends on."""
    num_steps = config.reference.max_steps or math.ceil(count_steps(config, stores) / len(config.trained_domains))
    training = config.training.replaced(
        max_steps=num_steps, epochs=None, max_tokens=None, checkpoint_every=num_steps, keep_checkpoints=1
    )
    every = max(1, min(config.evaluation.every, num_steps // _NUM_EVALUATIONS))
    plan = build_plan(config, "", {name: stores[name]}).replaced(
        num_steps=num_steps,
        training=training,
        evaluation=config.evaluation.replaced(every=every, best=None),
        log_samples=False,
        signals=[],
        export=False,
    )
    identity = plan.model_dump(
        mode="json", exclude={"run_id": True, "folder": True, "domains": True, "training": {"sequence_parallel"}}
    )
    identity["stores"] = [store.fingerprint for store in (stores[name].train, stores[name].eval) if store]
    folder = config.output_dir.resolve() / "references" / f"{name}-{fingerprint(identity)}"
    return plan.replaced(run_id=folder.name, folder=folder)


def _keep_best(plan: TrainingPlan) -> str:
    """Write down the reference of a domain; the outcome of its training, in a line."""
    (name,) = plan.domains
    measured = {feedback.step: feedback.loss_nats(name) for feedback in read_run(plan.folder).feedback}
    step = min((step for step, loss in measured.items() if math.isfinite(loss)), key=lambda step: measured[step])
    write_references(plan.folder / _FILE, {name: measured[step]})
    remove_folder(plan.folder / "checkpoints")
    told = f"{printable(name)}: reference loss {measured[step]:.4f} nats per token"
    if step == 0:  # of equal losses it is the first
        return f"{told}, the base model's own: in {plan.num_steps:,} steps fine-tuning on it alone did not beat that"
    return f"{told}, at step {step:,} of {plan.num_steps:,}; the base model's is {measured[0]:.4f}"
