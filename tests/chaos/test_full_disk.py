"""A disk that is full while a run trains: it ends at once and says what to do, and with room again it goes on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import num_lines, raymix, read_lines, write_run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("no rights to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_run_on_a_full_disk_stops_and_goes_on_once_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    changes = {"training__max_steps": 400, "data__cache_dir": str(tmp_path / "cache")}
    config = write_run(tmp_path, output_dir=str(small_disk / "runs"), **changes)
    run = small_disk / "runs" / "small"
    full = raymix("run", config)
    assert full.returncode == 1 and f"{run}" in full.stderr and "No space left on device" in full.stderr
    assert "the same command then resumes from the last checkpoint" in full.stderr
    attempts = [line for line in read_lines(run / "events.jsonl") if line["kind"] == "attempt"]
    assert len(attempts) == 1 and num_lines(run / "metrics.jsonl") < 400

    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    done = raymix("run", config)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, 401))
