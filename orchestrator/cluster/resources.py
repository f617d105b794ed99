"""Whether a worker group fits into the cluster, and how many do."""

from collections.abc import Iterable, Mapping

from orchestrator.config.cluster import ClusterConfig


class ResourceError(RuntimeError):
    """The cluster does not have the resources for the worker group."""


def check_resources(cluster: ClusterConfig) -> None:
    """ResourceError if the cluster is too small for the worker group, for which Ray Train would wait forever."""
    import ray  # not above: verbs that may find nothing to run import this module

    there = ray.cluster_resources()
    for kind, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        needed = each * cluster.num_workers
        if needed > there.get(kind, 0):
            raise ResourceError(
                f"cluster.num_workers {cluster.num_workers} x {each} {kind} = {needed:g} {kind}, but the cluster has "
                f"{there.get(kind, 0):g}; lower cluster.num_workers or cluster.{kind.lower()}s_per_worker, or add nodes"
            )


def count_fitting(clusters: Iterable[ClusterConfig]) -> int:
    import ray

    return num_side_by_side([node["Resources"] for node in ray.nodes() if node["Alive"]], clusters)


def num_side_by_side(nodes: Iterable[Mapping[str, float]], clusters: Iterable[ClusterConfig]) -> int:
    """How many of these runs fit at the same time, whichever they are, on nodes with these CPUs and GPUs; at least 1.

    With more drivers than room for their workers, worker groups would wait for each other forever.
    """
    nodes, counts = list(nodes), []
    for cluster in clusters:
        each = {"CPU": float(cluster.cpus_per_worker), "GPU": cluster.gpus_per_worker}
        room = [min(node.get(kind, 0.0) / amount for kind, amount in each.items() if amount) for node in nodes]
        counts.append(sum(map(int, room)) // cluster.num_workers)
    return max(1, min(counts))
