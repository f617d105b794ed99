"""Whether this machine has what a run needs: checked first, since Ray would wait forever for a missing GPU."""

import os

from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.errors import Fault
from orchestrator.config.run import RunConfig


def missing_gpus(config: RunConfig) -> list[Fault]:
    """A fault if the largest worker group of a local run, that of its references included, needs too many GPUs."""
    cluster = config.cluster
    if cluster.address != "local" or not cluster.gpus_per_worker:
        return []
    there = _count_gpus()
    groups = {"cluster.num_workers": cluster.num_workers}
    if config.mixing.needs.references == "computed":
        groups["reference.num_workers"] = config.reference.num_workers
    wanted = {key: number * cluster.gpus_per_worker for key, number in groups.items()}
    worst = max(wanted, key=lambda key: wanted[key])
    if wanted[worst] <= there:
        return []
    return [
        (
            ("cluster", "gpus_per_worker"),
            f"{worst} {groups[worst]} x {cluster.gpus_per_worker:g} = {wanted[worst]:g} GPUs, but this machine has "
            f"{there}{_why_none(there)}; {_what_fits(cluster, there)}, or name a cluster in cluster.address",
        )
    ]


def unwritable_output(config: RunConfig) -> list[Fault]:
    """A fault if no file can be created in `output_dir` or its nearest existing parent."""
    place = config.output_dir.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        what = f"{place} is not a folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        what = f"no write permission in {place}"
    else:
        return []
    return [(("output_dir",), f"cannot write to {config.output_dir} ({what}); choose another folder")]


def crowding(cluster: ClusterConfig) -> str | None:
    """A warning if a local run's workers need more CPUs than this machine has, and so share them."""
    there, wanted = os.cpu_count() or 1, cluster.num_workers * cluster.cpus_per_worker
    if cluster.address != "local" or wanted <= there:
        return None
    return (
        f"cluster.num_workers {cluster.num_workers} x cluster.cpus_per_worker {cluster.cpus_per_worker} = {wanted} "
        f"CPUs, but this machine has {there}: the workers will share them and run more slowly"
    )


def _count_gpus() -> int:
    import torch  # takes seconds; only runs that need a GPU get here

    return torch.cuda.device_count()


def _why_none(there: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else "" if there else " that torch can use"


def _what_fits(cluster: ClusterConfig, there: int) -> str:
    if not there:
        return "set it to 0 to train on the CPU"
    fitting = int(there / cluster.gpus_per_worker)
    return f"lower the number of workers to {fitting}" if fitting else f"lower it to at most {there}"
