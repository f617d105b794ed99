"""A group of ranks takes up a run on object storage: its copy on every node, and the lines that rank 0 writes."""

import os

import torch.distributed as dist

from workers.durable import teller
from workers.engine.collectives import on_every_rank, on_rank_zero
from workers.storage.addresses import uri_of
from workers.storage.data import bring_model
from workers.storage.lease import cache_id
from workers.storage.lines import LinePublisher
from workers.storage.run_copy import DRIVER_LOCK, claim_for_ranks, is_held, refresh_for_ranks
from workers.training.plan import TrainingPlan

_OF_RANKS = ("metrics.jsonl", "samples.jsonl")


def join_run(plan: TrainingPlan) -> LinePublisher:
    """Bring the model, and the copies of a run's folder up to date, on every node, before a rank writes there; a
    collective.

    Returns: what publishes the lines of rank 0; on the other ranks, and for a folder on a file system, it does nothing.
    """
    folder = plan.folder
    for model in (plan.model, plan.start.model if plan.start else plan.model):
        bring_model(model.path)
    if uri_of(folder) is None:
        return LinePublisher(folder, {})
    tell, is_beside_driver = teller(folder / "metrics.jsonl"), is_held(folder / DRIVER_LOCK)

    def refresh() -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one rank on each node
            refresh_for_ranks(folder, cache_id(), is_beside_driver, tell)

    on_every_rank(refresh)
    on_rank_zero(lambda: claim_for_ranks(folder, cache_id(), tell))
    names = {name: name for name in _OF_RANKS}
    if not is_beside_driver:  # the driver publishes those of its node
        names["events.jsonl"] = f"events-{cache_id()}.jsonl"
    return LinePublisher(folder, names if dist.get_rank() == 0 else {}, tell)
