"""Reference losses: what a model reaches on a domain's held-out rows when it is fine-tuned on that domain alone.

Each domain is an ordinary run of one domain, several side by side as far as the cluster has room; its reference is the
best held-out loss on the way. Memorised training loss would be of no use: it is near 0 everywhere, and then every
domain looks as if it had the same left to learn. Results are kept by fingerprint and computed once.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import ray
from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.controller.actor import DomainSize
from orchestrator.mixing import MixingConfig
from orchestrator.mixing.uniform import UniformConfig
from orchestrator.prepare.token_stores import DomainStores
from orchestrator.runs.folder import RunFolder
from orchestrator.training.plan import build_plan, count_steps, domain_sizes
from orchestrator.training.ray_train import as_they_end, check_resources, train_on_cluster
from orchestrator.training.single_process import train_alone
from orchestrator.views.references import ReferenceView
from orchestrator.views.terminal import printable
from workers.durable import write_durably
from workers.events import note_event
from workers.training.plan import TrainingPlan

_NUM_EVALUATIONS = 10  # on the way; the best of them counts


def with_reference_losses(config: RunConfig, stores: Mapping[str, DomainStores], console: Console) -> MixingConfig:
    """The mixing settings with a reference loss for each domain, where the algorithm wants them.

    The losses used are written to reference.json in the run's folder, and a run that goes on uses those.
    """
    mixing = config.mixing
    given = getattr(mixing, "reference", None)
    if given is None or getattr(mixing, "update", None) == "loss":
        return mixing
    kept = config.folder / "reference.json"
    if kept.exists():
        losses = json.loads(kept.read_text())["loss_nats"]
    elif isinstance(given, Path):
        losses = json.loads(given.read_text())["loss_nats"]
    else:
        losses = given if isinstance(given, dict) else compute_references(config, stores, console, config.folder)
    write_references(kept, losses)
    return mixing.model_copy(update={"reference": {name: losses[name] for name in config.trained_domains}})


def wants_computed(mixing: MixingConfig) -> bool:
    """Whether reference losses are to be computed for these settings."""
    return getattr(mixing, "reference", None) == "computed" and getattr(mixing, "update", None) != "loss"


def write_references(path: Path, losses: Mapping[str, float]) -> None:
    """The file that `mixing.reference` can name."""
    write_durably(path, json.dumps({"loss_nats": dict(losses)}, indent=1).encode())


def compute_references(
    config: RunConfig, stores: Mapping[str, DomainStores], console: Console, run_folder: Path | None = None
) -> dict[str, float]:
    """Best held-out loss of each domain, in nats per token; computed inside a Ray session where it is not known yet.

    Args:
        config: the run.
        stores: its data.
        console: where progress is told.
        run_folder: of the run that waits for them, where progress and results are told as well.
    """
    plans = {name: _plan_alone(config, name, stores) for name in config.trained_domains}
    waiting = {}
    for name, plan in plans.items():
        if not (plan.folder / "reference.json").exists():
            waiting[_submit(config, plan, domain_sizes({name: stores[name]}))] = name
    if waiting:
        what = f"fine-tuning on each of {len(waiting)} domains alone" if len(waiting) > 1 else "fine-tuning on 1 domain"
        console.print(f"reference losses: {what}", highlight=False)
        with ReferenceView({name: plans[name] for name in waiting.values()}, console, run_folder):
            for name in as_they_end(waiting, "reference of domain"):
                told = _keep_best(plans[name])
                console.print(f"  {told}", markup=False, highlight=False, soft_wrap=True)
                if run_folder is not None:
                    note_event(run_folder, 0, "reference", told)
    return {
        name: json.loads((plan.folder / "reference.json").read_text())["loss_nats"][name]
        for name, plan in plans.items()
    }


def _plan_alone(config: RunConfig, name: str, stores: Mapping[str, DomainStores]) -> TrainingPlan:
    """The run's plan cut down to one domain, in a folder named by everything that its result depends on."""
    num_steps = config.reference.max_steps or math.ceil(count_steps(config, stores) / len(config.trained_domains))
    training = config.training.model_copy(
        update={
            "max_steps": num_steps,
            "epochs": None,
            "max_tokens": None,
            "checkpoint_every": num_steps,
            "keep_checkpoints": 1,
        }
    )
    every = max(1, min(config.evaluation.every, num_steps // _NUM_EVALUATIONS))
    plan = build_plan(config, "", {name: stores[name]}).model_copy(
        update={
            "num_steps": num_steps,
            "training": training,
            "evaluation": config.evaluation.model_copy(update={"every": every, "best": None}),
            "log_samples": False,
            "signals": [],
            "export": False,
        }
    )
    identity = plan.model_dump(mode="json", exclude={"run_id", "folder", "domains"})
    identity["stores"] = [store.fingerprint for store in (stores[name].train, stores[name].eval) if store]
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
    folder = config.output_dir.resolve() / "references" / f"{name}-{digest}"
    return plan.model_copy(update={"run_id": folder.name, "folder": folder})


def _submit(config: RunConfig, plan: TrainingPlan, sizes: list[DomainSize]) -> ray.ObjectRef:
    """One training as a Ray task: the rank itself, or the driver of a worker group."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    cluster = config.cluster.model_copy(update={"num_workers": config.reference.num_workers})
    check_resources(cluster)
    if cluster.num_workers == 1:
        task = ray.remote(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker)(train_alone)
        return task.remote(plan, UniformConfig(), sizes)
    return ray.remote(num_cpus=0)(train_on_cluster).remote(plan, UniformConfig(), sizes, cluster)


def _keep_best(plan: TrainingPlan) -> str:
    """Write down the reference of a domain; what came of its training, in a line."""
    (name,) = plan.domains
    run = RunFolder(plan.folder)
    run.refresh()
    measured = {feedback.step: feedback.loss_nats(name) for feedback in run.feedback}
    step = min((step for step, loss in measured.items() if math.isfinite(loss)), key=lambda step: measured[step])
    write_references(plan.folder / "reference.json", {name: measured[step]})
    shutil.rmtree(plan.folder / "checkpoints", ignore_errors=True)
    told = f"{printable(name)}: reference loss {measured[step]:.4f} nats per token"
    if step == 0:  # of equal losses it is the first
        return f"{told}, the base model's own: in {plan.num_steps:,} steps fine-tuning on it alone did not beat that"
    return f"{told}, at step {step:,} of {plan.num_steps:,}; the base model's is {measured[0]:.4f}"
