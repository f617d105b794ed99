"""A run from its configuration to its result: claim, prepare, reference losses, train, summarise, report."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Self

from rich.console import Console

from orchestrator.cluster.session import ray_session
from orchestrator.config.machine import crowding
from orchestrator.config.run import ClusterConfig, RunConfig
from orchestrator.controller.actor import DomainSize
from orchestrator.mixing import MixingConfig
from orchestrator.prepare.detection.driver import with_detected_shares
from orchestrator.prepare.findings import look_at_data
from orchestrator.prepare.importance import with_importance
from orchestrator.prepare.token_stores import DomainStores, cached_tokenizer, check_ids, prepare_stores, template_day
from orchestrator.runs.data_record import FILE_NAME
from orchestrator.runs.lock import claim_folder
from orchestrator.runs.summary import write_summary
from orchestrator.sweeps.references import compute_references, with_reference_losses
from orchestrator.tracking.watch import TrackedRun, track
from orchestrator.training.plan import budget_warning, build_plan, domain_sizes
from orchestrator.training.ray_train import train_on_cluster
from orchestrator.training.single_process import train_alone
from orchestrator.views.findings import print_findings
from orchestrator.views.quiet import chatter_to
from orchestrator.views.report import write_report
from orchestrator.views.summary import summary_view
from orchestrator.views.terminal import PreparationView, RunView
from workers.durable import write_durably
from workers.events import note_event
from workers.hub import reach_hub
from workers.model.base_name import is_hub_name
from workers.model.loading import check_model, load_vocabulary_size, reach_model
from workers.training.plan import TrainingPlan


def run(config: RunConfig, console: Console) -> None:
    """Train, or go on where the run stopped; a finished run only shows its summary again."""
    if config.stage_list:
        from orchestrator.sweeps.stages.running import run_stages  # which is made of this module's parts

        run_stages(config, console)
        return
    with claim_folder(config) as run_id:
        if not (config.folder / "summary.json").exists():
            with chatter_to(config.folder / "raymix.log") as quiet_console:
                quiet_console.print(f"{config.name}: starting Ray ({config.cluster.address})", markup=False)
                if warning := crowding(config.cluster):
                    quiet_console.print(warning, style="yellow", markup=False, highlight=False)
                with ray_session(config.cluster):
                    train_here(config, run_id, quiet_console)
        write_report([config.folder], config.folder / "report.html")
        console.print(summary_view(config.folder))


@dataclass(frozen=True)
class ReadyRun:
    """A run of which only the training is left. Plain data with absolute paths: any process can do it."""

    plan: TrainingPlan
    mixing: MixingConfig
    sizes: list[DomainSize]
    cluster: ClusterConfig
    num_bad_rows: dict[str, int]
    tracked: TrackedRun

    def without_models(self) -> Self:
        """The same run leaving numbers only: neither `model/` nor `best/`, and one checkpoint at a time."""
        plan = self.plan
        leaner = {
            "export": False,
            "evaluation": plan.evaluation.model_copy(update={"best": None}),
            "training": plan.training.model_copy(update={"keep_checkpoints": 1}),
        }
        return replace(self, plan=plan.model_copy(update=leaner))


def make_ready(
    config: RunConfig, run_id: str, console: Console, stores: Mapping[str, DomainStores] | None = None
) -> ReadyRun:
    """Everything that comes before the training, inside a Ray session: data, reference losses, plan.

    Args:
        config: the run.
        run_id: its identity.
        console: where progress is told.
        stores: token stores of every domain, where the caller has them already.

    Raises:
        ValueError: the configuration is a plan of stages, which is several runs.
    """
    if config.stage_list:
        raise ValueError(f"{config.name}: a plan of stages is run by `raymix run` alone; leave out stages here")
    is_first_told = stores is None
    stores = stores or prepare(config, console)
    _note_findings(config, stores, console if is_first_told else None)
    config = with_detected_shares(config, console)
    _note_budget(config, stores, console)
    config = with_importance(config, stores, console)
    return ReadyRun(
        plan=build_plan(config, run_id, stores),
        mixing=with_reference_losses(config, stores, console),
        sizes=domain_sizes(stores),
        cluster=config.cluster,
        num_bad_rows={name: domain.report.num_bad_rows for name, domain in stores.items()},
        tracked=TrackedRun(config.folder, run_id, tuple(config.tracking)),
    )


def _note_findings(config: RunConfig, stores: Mapping[str, DomainStores], console: Console | None) -> None:
    """Tell once, when the run begins, what became of the rows of its data, and keep the counts in data.json."""
    if (config.folder / FILE_NAME).exists():
        return
    record = look_at_data(config.data, stores, template_day(config))
    write_durably(config.folder / FILE_NAME, record.model_dump_json(indent=1).encode())
    for finding in record.findings:
        note_event(config.folder, 0, finding.kind, finding.line)
    if console is not None:
        print_findings(console, record.findings)


def _note_budget(config: RunConfig, stores: Mapping[str, DomainStores], console: Console) -> None:
    """Tell once of a budget that is less than a step."""
    if (warning := budget_warning(config, stores)) and not (config.folder / "metrics.jsonl").exists():
        note_event(config.folder, 0, "budget", warning)
        console.print(warning, style="yellow", markup=False, highlight=False)


def complete(run: ReadyRun, *, alone: bool = False, stopping: Event | None = None) -> None:
    """Train and write summary.json, inside a Ray session.

    Args:
        run: what to train.
        alone: this process is the one rank.
        stopping: ends the training by a checkpoint once it is set.

    Raises:
        KeyboardInterrupt: it was stopped.
    """
    if alone:
        train_alone(run.plan, run.mixing, run.sizes, stopping)
    else:
        train_on_cluster(run.plan, run.mixing, run.sizes, run.cluster, stopping)
    write_summary(run.plan.folder, run.num_bad_rows)


def train_here(config: RunConfig, run_id: str, console: Console) -> None:
    """Make a run ready and complete it, inside a Ray session, with its live view and its trackers."""
    ready = make_ready(config, run_id, console)
    view = RunView(config.folder, list(ready.plan.domains), ready.plan.num_steps, console)
    with track([ready.tracked]), view:
        complete(ready)


def prepare(config: RunConfig, console: Console) -> dict[str, DomainStores]:
    """The token stores of every domain, made or found, for a base model whose files are in order.

    Raises:
        ValueError: the base model cannot be loaded, or a domain cannot be used with it.
    """
    for note in _hub_notes(config):
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    model = config.model.with_absolute_paths()
    on_gpu, training = config.cluster.gpus_per_worker > 0, config.training
    base = check_model(model, on_gpu, training.activation_checkpointing, training.deepspeed.zero_stage)
    with PreparationView(console) as view:
        stores = prepare_stores(
            {name: domain.with_absolute_paths() for name, domain in config.domains.items()},
            config.data,
            model,
            config.cache_dir,
            lambda done, total, domain: view.update(domain, int(done), int(total)),
        )
    num_embeddings = base.num_embeddings if base is not None else load_vocabulary_size(model)
    if num_embeddings is not None:
        check_ids(stores, cached_tokenizer(model, config.cache_dir.resolve()), num_embeddings)
    return stores


def _hub_notes(config: RunConfig) -> list[str]:
    """What is to be told of names on the hub that only the local cache has now."""
    notes: list[str | None] = []
    if is_hub_name(config.model.path):
        notes.append(reach_model(config.model))
    for name, domain in config.domains.items():
        if domain.hub is not None and not Path(domain.hub.path).exists():
            try:
                notes.append(reach_hub("dataset", domain.hub.path, domain.hub.revision))
            except ValueError as error:
                raise ValueError(f"domain {name!r}: {error}") from error
    return [note for note in notes if note]


def reference(config: RunConfig, console: Console) -> dict[str, float]:
    """Reference losses of every domain, in nats per token: computed, or found where they were computed before."""
    with chatter_to(config.output_dir / "references" / "raymix.log") as quiet_console, ray_session(config.cluster):
        stores = prepare(config, quiet_console)
        config = with_importance(config, stores, quiet_console, in_folder=False)
        return compute_references(config, stores, quiet_console)
