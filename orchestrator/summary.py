"""summary.json: what came of a run, from its own public files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from orchestrator.report.results import _summarise as summarise
from orchestrator.run_folder import RunFolder
from workers.atomic import write_durably


def write_summary(folder: Path, num_bad_rows: Mapping[str, int]) -> None:
    """Summarise a finished run; `num_bad_rows` are the unreadable training rows of each domain."""
    run = RunFolder(folder)
    run.refresh()
    summary = summarise(run)
    version_S = run.metrics.column("weights_version").astype(int)
    for name, domain in summary.domains.items():
        share_V = np.array([weights.shares[name] for weights in run.weights])
        domain.share_mean = float(share_V[version_S].mean())
        domain.rows_seen = int(run.metrics.column(f"rows/{name}").sum())
        domain.num_bad_rows = num_bad_rows[name]
    write_durably(folder / "summary.json", summary.model_dump_json(indent=1).encode())
