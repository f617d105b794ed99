"""A run from its configuration to its result: claim, prepare, reference losses, train, summarise, report."""

from rich.console import Console

from orchestrator.config import RunConfig
from orchestrator.quiet import chatter_to
from orchestrator.report import write_report
from orchestrator.summary import write_summary
from orchestrator.terminal import PreparationView, RunView, summary_view
from orchestrator.training.claim import claim_folder
from orchestrator.training.cluster import ray_session
from orchestrator.training.planning import build_plan, domain_sizes
from orchestrator.training.preparation import DomainStores, prepare_stores
from orchestrator.training.reference import compute_references, with_reference_losses
from orchestrator.training.trainer import train_on_cluster


def run(config: RunConfig, console: Console) -> None:
    """Train, or go on where the run stopped; a finished run only shows its summary again."""
    with claim_folder(config) as run_id:
        if not (config.folder / "summary.json").exists():
            with chatter_to(config.folder / "raymix.log") as quiet_console:
                quiet_console.print(f"{config.name}: starting Ray ({config.cluster.address})", markup=False)
                with ray_session(config.cluster):
                    _train(config, run_id, quiet_console)
        write_report([config.folder], config.folder / "report.html")
        console.print(summary_view(config.folder))


def _train(config: RunConfig, run_id: str, console: Console) -> None:
    stores = prepare(config, console)
    mixing = with_reference_losses(config, stores, console)
    plan = build_plan(config, run_id, stores)
    with RunView(config.folder, list(plan.domains), plan.num_steps, console):
        train_on_cluster(plan, mixing, domain_sizes(stores), config.cluster)
    write_summary(config.folder, {name: domain.report.num_bad_rows for name, domain in stores.items()})


def prepare(config: RunConfig, console: Console) -> dict[str, DomainStores]:
    """The token stores of every domain, made or found."""
    with PreparationView(console) as view:
        return prepare_stores(
            {name: domain.with_absolute_paths() for name, domain in config.domains.items()},
            config.data,
            config.model.with_absolute_paths(),
            config.cache_dir,
            lambda done, total, domain: view.update(domain, int(done), int(total)),
        )


def reference(config: RunConfig, console: Console) -> dict[str, float]:
    """Reference losses of every domain, in nats per token: computed, or found where they were computed before."""
    with chatter_to(config.output_dir / "references" / "raymix.log") as quiet_console, ray_session(config.cluster):
        return compute_references(config, prepare(config, quiet_console), quiet_console)
