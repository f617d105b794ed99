"""Run folders that are damaged, or worse: each is named with the reason, and nobody else waits for it."""

import errno
import json
import os
import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from orchestrator.cli.main import app
from orchestrator.dashboard.catalog import Catalog
from orchestrator.runs.folder import RunFolder, read_run
from orchestrator.runs.step_table import StepTable
from orchestrator.views.report.comparison import load_runs
from tests.dashboards import Server
from tests.unit.conftest import make_fake_run_in

LARGE = "9" * 400


def sparse(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 10 << 30)


def nested(path: Path) -> None:
    path.write_text('{"step": 31, "kind": "x", "a": ' + "[" * 20_000 + "]" * 20_000 + "}\n")


KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "circle": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
    "sparse": sparse,
    "nested": nested,
    "infinity": lambda path: path.write_text('{"step": Infinity, "steps": Infinity, "domains": {}, "mixing": {}}\n'),
    "large number": lambda path: path.write_text(f'{{"step": {LARGE}, "steps": {LARGE}, "domains": {{}}}}\n'),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "text for numbers": lambda path: path.write_text(f'{{"steps": "{LARGE}", "domains": "x", "shares": "y"}}\n'),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 100 + b"\n"),
    "half a character": lambda path: path.write_text('{"name": "\\ud800", "domains": {"\\ud800": {}}, "mixing": 1}\n'),
}
FILES = ("config.json", "summary.json", "weights/000000.json", "feedback/00000000.json", "metrics.jsonl", "data.json")
LINES_MAY_BE_ANYTHING = {("metrics.jsonl", kind) for kind in ("infinity", "list", "text for numbers", "binary")}
"""Counted as unreadable lines, since a killed writer leaves such; a number that is not finite may be one."""
IS_JSON_OF_ITS_KIND = {("config.json", "text for numbers")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind in the place of every file, each in a run of its own, and one that is well."""
    root = tmp_path_factory.mktemp("runs")
    make = make_fake_run_in(root)
    for file in FILES:
        for kind, put in KINDS.items():
            path = make(name_of(file, kind), total_steps=40, num_steps=30, every=20).path / file
            path.unlink(missing_ok=True)
            put(path)
    for part in ("weights", "feedback"):
        folder = make(f"{part} fifo", total_steps=40, num_steps=30, every=20).path / part
        shutil.rmtree(folder)
        os.mkfifo(folder)
    os.mkfifo(root / "no folder")
    (root / "everything").symlink_to("/")
    (root / os.fsdecode(b"\xff\xfe")).mkdir()
    make("well", total_steps=40, every=20)
    return root


def name_of(file: str, kind: str) -> str:
    return f"{file.replace('/', ' ')} {kind}"


@pytest.mark.parametrize("file", FILES)
def test_a_run_names_the_file_that_cannot_be_used(file: str, runs: Path) -> None:
    for kind in KINDS:
        run = RunFolder(runs / name_of(file, kind))
        run.refresh()
        is_passed_over = (file, kind) in LINES_MAY_BE_ANYTHING | IS_JSON_OF_ITS_KIND
        assert list(run.problems) == ([] if is_passed_over else [file]), kind
        assert not run.refresh(), f"{kind}: nothing is new"
        assert list(run.problems) == ([] if is_passed_over else [file]), kind
        assert len(run.metrics) == (0 if file == "metrics.jsonl" else 30), kind
        if not is_passed_over and file not in ("summary.json", "data.json"):
            with pytest.raises(ValueError, match="; restore it, or move it away"):
                read_run(run.path)


def test_a_run_that_is_mended_is_read(tmp_path: Path) -> None:
    folder = make_fake_run_in(tmp_path)(total_steps=40, every=20).path
    run = RunFolder(folder)
    kept = {}
    for file in (*FILES[:-1], "events.jsonl"):
        kept[file] = (folder / file).read_bytes() if (folder / file).exists() else b""
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)
    assert run.refresh() and set(run.problems) == set(kept)
    for file, content in kept.items():
        (folder / file).unlink()
        (folder / file).write_bytes(content)
    assert run.refresh() and run.problems == {}
    assert (len(run.metrics), len(run.weights), len(run.feedback)) == (40, 2, 3)
    assert run.summary is not None and run.config


def test_an_error_of_the_disk_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_fake_run_in(tmp_path)(total_steps=40, every=20).path
    run = RunFolder(folder)
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.runs.folder.read_object", fail)
        patch.setattr("orchestrator.runs.growing.read_model", fail)
        run.refresh()
    assert run.problems["config.json"] == "Input/output error" and not run.weights
    assert run.refresh() and run.problems == {} and run.config and run.weights


def fail(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_line_without_an_end_and_too_many_lines_that_are_none_are_given_up(tmp_path: Path) -> None:
    for content, reason in (
        (b'{"step": 1}\n' + b"x" * (3 << 20), "has a line of more than 1,048,576 bytes after byte 12"),
        (b"\n" * (20 << 20), "has more than 10,000 lines that are no records"),
    ):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        run = RunFolder(tmp_path)
        run.refresh()
        assert run.problems == {"metrics.jsonl": reason}
        began = time.process_time()
        run.refresh()
        assert time.process_time() - began < 0.1 and run.problems == {"metrics.jsonl": reason}


def test_a_line_without_an_end_is_not_read_to_the_end_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    os.truncate(tmp_path / "metrics.jsonl", 300 << 20)
    run = RunFolder(tmp_path)
    tracemalloc.start()
    run.refresh()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(run.metrics) == 1 and run.problems and peak < 60 << 20


def test_a_table_does_not_grow_with_keys_that_few_lines_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.runs.step_table.MAX_NUMBERS", 100_000)
    wide = json.dumps({"step": 1} | {f"key{index}": index for index in range(2_000)}) + "\n"
    lines = "".join(f'{{"step": {step}}}\n' for step in range(2, 10_000))
    (tmp_path / "metrics.jsonl").write_text(wide + lines)
    run = RunFolder(tmp_path)
    run.refresh()
    assert "has more than 100,000 numbers" in run.problems["metrics.jsonl"]
    assert len(run.metrics) * len(run.metrics.keys) <= 100_000


@pytest.mark.parametrize("step", ["Infinity", "NaN", "-1", "1.5", "9007199254740994", "true.", '"x"', "[1]", "null"])
@pytest.mark.parametrize("num_lines", [1, 5_000])
def test_a_step_is_a_number_that_can_be_counted_to(step: str, num_lines: int, tmp_path: Path) -> None:
    """Line by line and in blocks alike."""
    lines = "".join(f'{{"step": {number}, "loss_nats": 2.0}}\n' for number in range(1, num_lines + 1))
    (tmp_path / "metrics.jsonl").write_text(lines + f'{{"step": {step}, "loss_nats": 2.0}}\n')
    run = RunFolder(tmp_path)
    run.refresh()
    assert (len(run.metrics), run.metrics.last_step, run.num_unreadable_lines) == (num_lines, num_lines, 1)


def test_a_number_that_is_not_finite_is_one_where_it_was_measured(tmp_path: Path) -> None:
    table = StepTable()
    table.append({"step": 1, "grad_norm": float("inf"), "loss_nats": float("nan")})
    assert table.last("grad_norm") == float("inf")


def test_the_list_marks_runs_with_the_reason(runs: Path) -> None:
    began = time.monotonic()
    glances = {glance.name: glance for glance in Catalog(runs).glances()}
    assert time.monotonic() - began < 20.0
    assert (glances["well"].state, glances["well"].problem, glances["well"].step) == ("finished", "", 40)
    for file in ("config.json", "summary.json", "feedback/00000000.json"):
        for kind in KINDS:
            glance = glances[name_of(file, kind)]
            assert glance.state == "unreadable" and glance.problem.startswith(f"{file}: "), (file, kind)
    for kind in ("fifo", "endless", "circle", "folder", "sparse"):
        for file in ("metrics.jsonl", "data.json"):
            assert glances[name_of(file, kind)].problem.startswith(f"{file}: "), (file, kind)
    assert glances[name_of("metrics.jsonl", "large number")].problem.startswith("metrics.jsonl: a line has an integer")
    assert glances["weights fifo"].problem == "weights: Not a directory"
    assert not {"no folder", "everything"} & glances.keys()


def test_a_report_shows_the_rest_and_says_what_is_missing(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    bad, well = runs / name_of("feedback/00000000.json", "fifo"), runs / "well"
    done = CliRunner().invoke(app, ["report", str(bad), str(well), "--output", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "feedback/00000000.json: is a FIFO" in " ".join(done.output.split())
    assert "is a FIFO, not a file" in (tmp_path / "page.html").read_text()
    with pytest.raises(ValueError, match=r"config\.json: is a FIFO, not a file"):
        os.mkfifo(tmp_path / "config.json")
        load_runs([tmp_path])


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    server = Server(runs)
    yield server
    if server.process.poll() is None:
        server.process.kill()


def first_message(address: str) -> dict[str, Any]:
    with urlopen(address, timeout=30) as stream:
        line = next(line for line in stream if line.startswith(b"data: "))
    return json.loads(line[6:])


def test_a_server_lists_all_in_time_and_ends_when_it_is_told_to(server: Server) -> None:
    began = time.monotonic()
    rows = first_message(f"{server.base}/live/list")["parts"]
    assert time.monotonic() - began < 20.0
    assert ">finished<" in rows["row:well"]
    assert ">unreadable<" in rows["row:config.json fifo"] and "config.json: is a FIFO" in rows["row:config.json fifo"]
    for name in ("config.json fifo", "metrics.jsonl sparse", "summary.json nested", "feedback fifo"):
        health = first_message(f"{server.base}/live/run/{name.replace(' ', '%20')}")["parts"]["health"]
        assert "<dt>Unreadable</dt>" in health, name
    assert psutil.Process(server.process.pid).memory_info().rss < 700 << 20
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
