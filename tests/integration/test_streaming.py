"""Runs with a streamed domain: it begins before its last row is prepared, and ends as if all rows had been there."""

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.test_kill import assert_equal_runs
from tests.runs import kill_group, num_lines, raymix, read_lines, start, wait_for, write_run

NUM_STEPS, BATCH = 40, 8
NUM_PARTS, ROWS_PER_PART, KEPT_OF_PART = 5, 16_384, 60
HANG_SECONDS = 4
HELD_UP_SECONDS = 15
# Holds up every part but the first until a file is there. Python runs a module of this name as it starts.
HOLD_UP = """
import sys
if "workers.training.parts_ahead" in sys.orig_argv:
    import os, time
    import workers.data.parts as parts
    build = parts.PartMaker._build
    def hold_up(self, folder):
        while not os.path.exists(os.environ["RAYMIX_TEST_GATE"]):
            time.sleep(0.05)
        build(self, folder)
    parts.PartMaker._build = hold_up
"""


def write_stream(folder: Path, **changes: Any) -> Path:
    """A run over three domains of which `law` is streamed: five parts of 16,384 rows, most of them left out so that
    each has about 60 sequences, in two files. Its share is such that the run needs three parts."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(0)
    every = ROWS_PER_PART // KEPT_OF_PART
    files = [folder / "law-0.jsonl", folder / "law-1.jsonl.gz"]
    rows = [
        {"kind": "kept", "text": f"law {n} {'xyz'[rng.randrange(3)] * rng.randrange(2, 20)}"}
        if n % every == 0
        else {"kind": "filler", "text": ""}
        for n in range(NUM_PARTS * ROWS_PER_PART)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    files[0].write_text("".join(lines[: len(lines) // 3]))
    files[1].write_bytes(gzip.compress("".join(lines[len(lines) // 3 :]).encode(), 1, mtime=0))
    law = {
        "train": list(map(str, files)),
        "format": "text",
        "streaming": True,
        "eval_fraction": 0.1,
        "exclude": [{"field": "kind", "pattern": "filler"}],
    }
    mixing = {"type": "fixed", "shares": {"add": 0.3, "copy": 0.2, "law": 0.5}}
    settings: dict[str, Any] = {
        "domains__law": law,
        "mixing": mixing,
        "data__packing": False,
        "training__max_steps": NUM_STEPS,
        "training__global_batch_size": BATCH,
        "evaluation__every": 10,
    }
    return write_run(folder, **(settings | changes))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_stream(tmp_path_factory.mktemp("undisturbed"))
    done = raymix("run", config)
    assert done.returncode == 0, done.stderr
    return config.parent / "runs" / "small"


def samples(run: Path) -> dict[int, list[tuple[str, int]]]:
    """Domain and row of all ranks, by step."""
    found: dict[int, list[tuple[str, int]]] = {}
    for line in read_lines(run / "samples.jsonl"):
        found.setdefault(line["step"], []).extend((line["domain"], row) for row in line["rows"])
    return {step: sorted(rows) for step, rows in found.items()}


def parts(run: Path) -> list[int]:
    """Numbers of the parts behind the first one that are there."""
    return sorted(int(path.name.rpartition("-")[2]) for path in (run.parent / "token-stores").glob("[0-9a-f]*-*"))


def events(run: Path, kind: str) -> list[str]:
    return [line["message"] for line in read_lines(run / "events.jsonl") if line["kind"] == kind]


def test_shares_are_exact_no_row_comes_twice_and_what_is_not_needed_is_not_prepared(undisturbed: Path) -> None:
    seen: Counter[str] = Counter()
    law = []
    for step, rows in sorted(samples(undisturbed).items()):
        seen.update(domain for domain, _ in rows)
        law += [row for domain, row in rows if domain == "law"]
        for domain, share in {"add": 0.3, "copy": 0.2, "law": 0.5}.items():
            assert abs(seen[domain] - share * BATCH * step) < 1
    sizes = [_num_sequences(undisturbed, number) for number in (0, 1, 2)]
    assert sum(sizes[:2]) < len(law) == 160 < sum(sizes) and len(set(law)) == 160
    assert set(law[: sizes[0]]) == set(range(sizes[0]))  # part after part
    assert set(law[sizes[0] : sum(sizes[:2])]) == set(range(sizes[0], sum(sizes[:2])))
    assert set(parts(undisturbed)) <= {1, 2, 3, 4}
    (note,) = events(undisturbed, "streaming")[:1]
    assert note.startswith("law: streamed: counts and findings are of its first 16,384 rows")
    assert read_lines(undisturbed / "metrics.jsonl")[-1]["epochs"]["law"] is None


def _num_sequences(run: Path, number: int) -> int:
    suffix = f"-{number}" if number else ""
    (manifest,) = [
        json.loads(path.read_text())
        for path in (run.parent / "token-stores").glob(f"*{suffix}/train/manifest.json")
        if (content := json.loads(path.read_text())).get("next") and bool(suffix) == ("-" in path.parts[-3])
        if content["domain"] == "law"
    ]
    return int(manifest["num_rows"])


def test_training_begins_before_the_second_part_and_waits_for_it_without_a_hang(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "held" / "sitecustomize.py").parent.mkdir()
    (tmp_path / "held" / "sitecustomize.py").write_text(HOLD_UP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "held"))
    monkeypatch.setenv("RAYMIX_TEST_GATE", str(tmp_path / "gate"))
    config = write_stream(tmp_path / "run", cluster__hang_seconds=HANG_SECONDS)
    run = config.parent / "runs" / "small"
    process = start("run", config)
    wait_for(process, lambda: (run / "events.jsonl").exists() and any("waiting" in e for e in events(run, "streaming")))
    num_steps = num_lines(run / "metrics.jsonl")
    assert 0 < num_steps < NUM_STEPS and parts(run) == []
    with pytest.raises(AssertionError, match="the moment never came"):  # it stands, and nobody takes that for a hang
        wait_for(process, lambda: num_lines(run / "metrics.jsonl") > num_steps, timeout_s=HELD_UP_SECONDS)
    (tmp_path / "gate").touch()
    assert process.wait(timeout=240) == 0
    assert events(run, "hang") == []
    (waiting,) = [event for event in events(run, "streaming") if "waiting" in event]
    assert waiting.endswith("of domain 'law': part 1 is still being prepared")
    assert_equal_runs(run, undisturbed)


@pytest.mark.soak
def test_one_worker_trains_on_the_same_samples(undisturbed: Path, tmp_path: Path) -> None:
    config = write_stream(tmp_path / "run", cluster={"num_workers": 1})
    assert raymix("run", config).returncode == 0
    assert samples(config.parent / "runs" / "small") == samples(undisturbed)


@pytest.mark.timeout(400)
@pytest.mark.soak
def test_a_run_that_is_killed_in_each_of_its_parts_is_the_undisturbed_run(undisturbed: Path, tmp_path: Path) -> None:
    config = write_stream(tmp_path / "run")
    run = config.parent / "runs" / "small"
    for num_steps in (3, 17, 34):
        process = start("run", config)
        wait_for(process, _has_steps(run, num_steps))
        kill_group(process)
    assert raymix("run", config).returncode == 0
    assert_equal_runs(run, undisturbed)


def _has_steps(run: Path, num_steps: int) -> Callable[[], bool]:
    return lambda: num_lines(run / "metrics.jsonl") >= num_steps


@pytest.mark.timeout(400)
@pytest.mark.soak
def test_a_file_that_ends_early_ends_the_run_with_its_line_and_the_same_command_resumes_it(
    undisturbed: Path, tmp_path: Path
) -> None:
    config = write_stream(tmp_path / "run")
    run, file = config.parent / "runs" / "small", tmp_path / "run" / "law-1.jsonl.gz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 20])
    done = raymix("run", config)
    assert done.returncode != 0
    told = " ".join(done.stderr.split())
    assert "domain 'law', which is streamed" in told and "law-1.jsonl.gz:" in told, done.stderr
    assert "file unreadable from here on" in told
    num_steps = num_lines(run / "metrics.jsonl")
    assert 0 < num_steps < NUM_STEPS
    assert (run / "checkpoints" / f"step-{num_steps:08d}").exists()  # nothing is lost
    file.write_bytes(content)
    os.utime(file)
    assert raymix("run", config).returncode == 0
    assert samples(run) == samples(undisturbed)
    assert_equal_runs(run, undisturbed)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"training__epochs": 1, "training__max_steps": None},
            "training.epochs: domains.law is streamed (streaming: true), so the number of its rows is not known in "
            "advance; give training.max_steps or training.max_tokens instead",
        ),
        ({"mixing": {"type": "proportional"}}, "mixing.type: proportional takes shares from the sizes of the domains"),
        ({"mixing": {"type": "temperature"}}, "mixing.type: temperature takes shares from the sizes of the domains"),
        ({"mixing": {"type": "inverse"}}, "mixing.initial: proportional takes shares from the sizes of the domains"),
        ({"mixing": {"type": "mixture_of_skills", "tau": 2}}, "mixing.tau: 2 takes shares from the sizes"),
        ({"mixing": {"type": "fixed", "shares": "detected"}}, "mixing: shares are to be detected"),
    ],
)
def test_what_needs_the_number_of_rows_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    config = write_run(tmp_path, domains__law__streaming=True, **changes)
    done = raymix("check", config)
    assert done.returncode != 0
    assert told in " ".join(done.stderr.split()), done.stderr
