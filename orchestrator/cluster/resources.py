"""Whether, and how often, a worker group fits into the cluster."""

from collections.abc import Iterable, Mapping

from orchestrator.config.cluster import ClusterConfig


class ResourceError(RuntimeError):
    """The cluster can never hold the worker group that is asked for."""


def check_resources(cluster: ClusterConfig) -> None:
    """Refuse a worker group that the cluster can never hold: Ray Train would wait for it without an end."""
    import ray  # here and not above: verbs that may find nothing to run import this module

    there = ray.cluster_resources()
    for kind, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        needed = each * cluster.num_workers
        if needed > there.get(kind, 0):
            raise ResourceError(
                f"cluster.num_workers {cluster.num_workers} x {each} {kind} = {needed:g} {kind}, but the cluster has "
                f"{there.get(kind, 0):g}; lower cluster.num_workers or cluster.{kind.lower()}s_per_worker, or add nodes"
            )


def count_fitting(clusters: Iterable[ClusterConfig]) -> int:
    """How many runs the cluster that Ray is connected to has room for at a time; see `num_side_by_side`."""
    import ray

    return num_side_by_side([node["Resources"] for node in ray.nodes() if node["Alive"]], clusters)


def num_side_by_side(nodes: Iterable[Mapping[str, float]], clusters: Iterable[ClusterConfig]) -> int:
    """How many runs fit at a time, whichever of them they are; at least 1.

    Args:
        nodes: CPU and GPU of each node.
        clusters: what the runs want.

    Worker groups wait for each other without an end where there are more drivers than room for their workers.
    """
    nodes = list(nodes)
    return max(1, min(_num_worker_places(nodes, cluster) // cluster.num_workers for cluster in clusters))


def _num_worker_places(nodes: list[Mapping[str, float]], cluster: ClusterConfig) -> int:
    each = {"CPU": float(cluster.cpus_per_worker), "GPU": cluster.gpus_per_worker}
    return sum(int(min(node.get(kind, 0.0) / amount for kind, amount in each.items() if amount)) for node in nodes)
