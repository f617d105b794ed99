"""The file by which Prometheus finds a Ray session that was started for one command.

Ray writes such a file, prom_metrics_service_discovery.json in its temporary folder, but only if its dashboard is
running. Sessions that raymix starts have no dashboard, and several may run at once: each writes a separate file next to
that one, and deploy/prometheus/prometheus.yml reads them all.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "prom_metrics_raymix_"


@contextmanager
def announced_to_prometheus() -> Iterator[None]:
    """Publish this session's metrics endpoints in a file while the session lasts."""
    import ray

    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray"
    path = folder / f"{_PREFIX}{os.getpid()}.json"
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    with suppress(OSError):  # a run must not fail because of metrics
        _remove_stale(folder)
        # Prometheus ignores the file until it has its final name.
        unnamed = path.with_suffix(".tmp")
        unnamed.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": targets}]))
        unnamed.replace(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Drivers that were killed leave their files behind."""
    for path in folder.glob(f"{_PREFIX}*.json"):
        try:
            os.kill(int(path.stem.removeprefix(_PREFIX)), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError):  # another user's, still running
            continue
