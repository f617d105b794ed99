"""Where on a cluster an actor or task of Ray has to run."""

from pathlib import Path
from typing import Any

from workers.storage.addresses import uri_of


def on_this_node(path: Path) -> dict[str, Any]:
    """Ray's options for what works on a path as this process does: on this node, if the path is a copy in its cache."""
    if uri_of(path) is None:
        return {}
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
