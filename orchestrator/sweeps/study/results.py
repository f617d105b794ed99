"""results.jsonl and results.csv: one row a cell that is done, with the amounts beside the losses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from orchestrator.config.sections import Grid, Strategy
from orchestrator.runs.folder import read_run
from orchestrator.sweeps.stages.chain import StageRecord
from orchestrator.sweeps.study.grid import Trainings
from orchestrator.views.table import Cell, Column, ResultTable, Row
from workers.durable import write_durably


class ResultRow(BaseModel):
    """What a cell came to. Amounts are of all its stages together."""

    cell: str
    group: Grid | Strategy
    subject: str
    k: float
    seed: int
    num_stages: int
    steps: int
    num_rows: int
    num_tokens: int
    steps_by_stage: list[int]
    loss_nats: dict[str, float | None]
    """Held-out loss of every domain, in nats per token, at the end of the last stage."""
    loss_nats_base: dict[str, float | None]
    """The base model's."""
    forgotten_nats: dict[str, float | None]
    """Loss minus that of the `single` cell on all of the domain's data with this seed; None without one."""
    folders: list[Path]


def collect_results(trainings: Trainings) -> list[ResultRow]:
    """A row for each cell whose stages are all done, in the order of the cells."""
    records: dict[str, StageRecord] = {}
    bases: dict[str, dict[str, float | None]] = {}
    for digest, node in trainings.nodes.items():
        if node.is_finished():
            records[digest] = node.record()
            summary = read_run(node.find_folder()).summary
            assert summary is not None  # it is finished
            bases[digest] = {name: domain.loss_nats_start for name, domain in summary.domains.items()}
    rows = []
    for planned_cell in trainings.cells:
        if all(digest in records for digest in planned_cell.chain):
            cell, chain = planned_cell.cell, [records[digest] for digest in planned_cell.chain]
            row = ResultRow(
                cell=cell.name,
                group=cell.group,
                subject=cell.subject,
                k=cell.k,
                seed=cell.seed,
                num_stages=len(chain),
                steps=sum(record.steps for record in chain),
                num_rows=sum(record.num_rows for record in chain),
                num_tokens=sum(record.num_tokens for record in chain),
                steps_by_stage=[record.steps for record in chain],
                loss_nats=chain[-1].loss_nats,
                loss_nats_base=bases[planned_cell.chain[0]],
                forgotten_nats={},
                folders=[record.folder for record in chain],
            )
            rows.append(row)
    return [ResultRow(**(dict(row) | {"forgotten_nats": _forgotten(row, rows)})) for row in rows]


def write_results(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Write both files; each is replaced as a whole."""
    lines = "".join(row.model_dump_json() + "\n" for row in rows)
    write_durably(folder / "results.jsonl", lines.encode())
    flat = [_flatten(row) for row in rows]
    keys = list(dict.fromkeys(key for entry in flat for key in entry))
    columns = [Column(key, [Cell("", value=entry.get(key)) for entry in flat]) for key in keys]
    table = ResultTable("cell", [Row(row.cell) for row in rows], columns)
    write_durably(folder / "results.csv", table.to_csv().encode())


def _forgotten(row: ResultRow, rows: Sequence[ResultRow]) -> dict[str, float | None]:
    singles = [other for other in rows if (other.group, other.k, other.seed) == ("single", 1, row.seed)]
    best = {other.subject: other.loss_nats.get(other.subject) for other in singles}
    pairs = {name: (loss, best.get(name)) for name, loss in row.loss_nats.items()}
    return {name: None if loss is None or alone is None else loss - alone for name, (loss, alone) in pairs.items()}


def _flatten(row: ResultRow) -> dict[str, Any]:
    """Plain columns behind the cell's name: `loss_nats/math` and the like."""
    flat: dict[str, Any] = {}
    for key, value in row.model_dump(mode="json", exclude={"cell"}).items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{name}": entry for name, entry in value.items()}
        else:
            flat[key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
