"""evaluation.json: what each evaluation row loses at the end of a run, for intervals by resampling rows.

By domain it holds three lists with an entry for each row measured: `row` (its id in the domain's evaluation store),
`loss_sum_nats` and `num_tokens`. Summed up they are the run's last feedback. With packing a row holds several examples.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist

from workers.collectives import on_rank_zero
from workers.data.batches import Batch
from workers.durable import write_durably

if TYPE_CHECKING:
    from workers.engine import Engine

COLUMNS = ("row", "loss_sum_nats", "num_tokens")

_Entry = tuple[int, int, float, int]  # domain, row, sum of the loss in nats, loss tokens


def write_row_losses(engine: "Engine", batches: list[Batch], domains: list[str], path: Path) -> None:
    """Measure the rows of an evaluation one by one and write them to `path`; a collective.

    Args:
        engine: the trained model.
        batches: this rank's batches, as `build_evaluation_batches` made them.
        domains: names, in the order of the batches' indices.
        path: of evaluation.json.
    """
    mine = [entry for batch in batches for entry in _measure_rows(engine, batch)]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    entries = sorted(entry for part in everyone for entry in part)
    content = {name: _columns([entry for entry in entries if entry[0] == d]) for d, name in enumerate(domains)}
    on_rank_zero(partial(write_durably, path, json.dumps({"domains": content}).encode()))


def _measure_rows(engine: "Engine", batch: Batch) -> list[_Entry]:
    num_rows = len(batch.domain_B)
    each_its_own = replace(batch, domain_B=np.arange(num_rows, dtype=np.int64))
    loss_sum_B, num_tokens_B = engine.forward(each_its_own, num_rows)
    columns = (batch.domain_B, batch.row_B, loss_sum_B, num_tokens_B)
    entries = zip(*(column.tolist() for column in columns), strict=True)
    return [entry for entry in entries if entry[-1] > 0]  # a row that only fills up the pass has no loss token


def _columns(entries: list[_Entry]) -> dict[str, list[Any]]:
    return {name: [entry[i + 1] for entry in entries] for i, name in enumerate(COLUMNS)}
