"""The file by which Prometheus finds a Ray that was started for one run.

Ray writes such a file itself, prom_metrics_service_discovery.json in its folder for temporary files, but only where its
dashboard runs. The sessions that raymix starts on one machine go without it, and several may run at once: each puts a
file of its own beside that one, and deploy/prometheus/prometheus.yml reads them all.
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
    """Name this session's metrics endpoints in a file for as long as the session lasts."""
    import ray

    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray"
    path = folder / f"{_PREFIX}{os.getpid()}.json"
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    with suppress(OSError):  # metrics are not worth a run
        _remove_those_of_the_dead(folder)
        # Prometheus takes no notice of it before it has its name.
        unnamed = path.with_suffix(".tmp")
        unnamed.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": targets}]))
        unnamed.replace(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_those_of_the_dead(folder: Path) -> None:
    """A driver that was killed leaves its file behind."""
    for path in folder.glob(f"{_PREFIX}*.json"):
        try:
            os.kill(int(path.stem.removeprefix(_PREFIX)), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError):  # another person's, alive
            continue
