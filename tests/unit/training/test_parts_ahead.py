"""The process that makes parts ahead: as many as are wanted, and it neither outlives its owner nor ends unnoticed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.runs import ROOT
from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
from workers.data import preparing
from workers.data.preparing import fingerprint_tokenizer, plan_domain
from workers.model.tokenizer import load_tokenizer
from workers.training.parts_ahead import PartsAhead, PartsJob
from workers.training.plan import StreamedRows

DATA = DataConfig(max_length=64)
LONG_SECONDS = 60.0


@pytest.fixture
def job(tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartsJob:
    """Five parts of 40 rows; the last has a file of its own."""
    monkeypatch.setattr(preparing, "ROWS_PER_PART", 40)
    for name, num in (("a", 160), ("b", 40)):
        lines = [json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(num)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    model = ModelConfig(path=str(tokenizer_folder))
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    config = DomainConfig(train=paths, format="text", streaming=True, eval_fraction=0.2)
    plan = plan_domain("law", config, DATA, fingerprint_tokenizer(load_tokenizer(model)))
    (tmp_path / "cache").mkdir()
    return PartsJob(rows=StreamedRows(plan=plan, data=DATA), model=model, cache_dir=tmp_path / "cache")


def num_parts(job: PartsJob) -> int:
    return len(list(job.cache_dir.glob("[0-9a-f]*")))


def children() -> list[psutil.Process]:
    found = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in found if "workers.training.parts_ahead" in each.cmdline()]


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG_SECONDS
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_as_many_parts_are_made_as_are_wanted(job: PartsJob) -> None:
    ahead = PartsAhead(job)
    ahead.want(2)
    assert ahead.wait(2, LONG_SECONDS) and not ahead.wait(3, 0.5)
    assert num_parts(job) == 2
    ahead.want(4)
    ahead.want(3)  # less than before changes nothing
    assert ahead.wait(4, LONG_SECONDS) and num_parts(job) == 4
    ahead.want(100)
    assert ahead.wait(5, LONG_SECONDS)
    wait_until(lambda: not children())
    assert num_parts(job) == 5


def test_what_keeps_a_part_from_being_made_is_told_and_those_before_it_stay(job: PartsJob, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").unlink()
    ahead = PartsAhead(job)
    ahead.want(5)
    assert ahead.wait(4, LONG_SECONDS)
    with pytest.raises(ValueError, match=r"b\.jsonl: No such file or directory; restore the file"):
        ahead.wait(5, LONG_SECONDS)
    assert ahead.wait(4, 0.0) and num_parts(job) == 4


def test_a_process_that_is_killed_is_an_error(job: PartsJob) -> None:
    ahead = PartsAhead(job)
    ahead.want(1)
    assert ahead.wait(1, LONG_SECONDS)
    (child,) = children()
    child.kill()
    with pytest.raises(ValueError, match=r"the process that prepares it ended with code -9"):
        ahead.wait(2, LONG_SECONDS)
    ahead.want(2)  # after its end, too


def test_it_ends_when_it_is_closed_and_with_its_owner(job: PartsJob, tmp_path: Path) -> None:
    ahead = PartsAhead(job)
    ahead.want(1)
    assert ahead.wait(1, LONG_SECONDS)
    ahead.close()
    wait_until(lambda: not children())

    (tmp_path / "job.json").write_text(job.model_dump_json())
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path / "job.json")], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    psutil.wait_procs([child], timeout=LONG_SECONDS)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


_OWNER = """
import sys
from pathlib import Path
from workers.training.parts_ahead import PartsAhead, PartsJob
ahead = PartsAhead(PartsJob.model_validate_json(Path(sys.argv[1]).read_text()))
ahead.want(1)
ahead.wait(1, 60)
print(ahead._process.pid, flush=True)
ahead.wait(2, 600)
"""
