"""What the terminal shows: the files' numbers, harmless names, plain lines where there is no terminal."""

import io
import json
import re
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.views.format import format_duration, printable
from orchestrator.views.preparation import PreparationView
from orchestrator.views.summary import summary_view
from orchestrator.views.terminal import RunView
from tests.unit.conftest import FakeRun, MakeFakeRun

HOSTILE = ("[bold red]x[/]", "\x1b[2Jgone", "<script>alert(1)</script>", "plain")


def plain_console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def terminal_console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def render(run: FakeRun, width: int = 80) -> str:
    console = plain_console(width)
    view = RunView(run.path, run.domains, run.total_steps, console)
    view.run.refresh()
    console.print(view.render())
    return text_of(console)


def wait_for(console: Console, text: str) -> None:
    deadline = time.monotonic() + 10.0
    while text not in text_of(console):
        assert time.monotonic() < deadline, f"{text!r} did not appear in {text_of(console)!r}"
        time.sleep(0.02)


def test_the_view_shows_share_epochs_loss_and_change(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=200, num_steps=120)
    lines = {line.split()[0]: line for line in render(run).splitlines() if line.split()}
    for domain in run.domains:
        now, base = run.losses[120][domain], run.losses[0][domain]
        row = lines[domain]
        for expected in (f"{run.shares[domain]:.1%}", f"{run.epochs[domain]:.2f}", f"{now:.3f}", f"{now - base:+.3f}"):
            assert expected in row
    assert "versatune  2 workers  ZeRO-2" in lines["five-domains"]
    assert "120/200" in lines["step"] and "ETA 2 min" in lines["step"] and "tokens/s" in lines["step"]


def test_red_means_forgotten_and_green_learned(fake_run: MakeFakeRun) -> None:
    run = fake_run(domains=("learned", "forgotten"), total_steps=40)
    console = terminal_console()
    view = RunView(run.path, run.domains, run.total_steps, console)
    view.run.refresh()
    console.print(view.render())
    lines = text_of(console).splitlines()
    assert re.search(r"\x1b\[31m *\+", next(line for line in lines if "forgotten" in line))
    assert re.search(r"\x1b\[32m *-", next(line for line in lines if "learned" in line))


@pytest.mark.parametrize(
    ("setting", "said"),
    [(1, "1 worker"), (4, "4 workers"), ({"min": 1, "max": 2}, "1 to 2 workers"), ({"max": "\n"}, "- to \\n workers")],
)
def test_the_heading_says_how_many_workers_there_may_be(fake_run: MakeFakeRun, setting: object, said: str) -> None:
    run = fake_run(total_steps=40)
    config = json.loads((run.path / "config.json").read_text())
    config["cluster"]["num_workers"] = setting
    (run.path / "config.json").write_text(json.dumps(config))
    console = plain_console()
    with RunView(run.path, run.domains, 40, console):
        pass
    assert f"  {said}  ZeRO-2" in text_of(console).splitlines()[0]


def test_elsewhere_one_plain_line_per_evaluation(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=60, num_steps=20, every=20)
    console = plain_console()
    with RunView(run.path, run.domains, 60, console):
        wait_for(console, "step 20/60")
        run.write_steps(21, 60)
        wait_for(console, "step 60/60")
    lines = text_of(console).splitlines()
    assert lines[0] == "five-domains  versatune  2 workers  ZeRO-2: 60 steps"
    assert [line.split()[1] for line in lines[1:]] == ["0/60", "20/60", "40/60", "60/60"]
    assert all(character.isprintable() or character == "\n" for character in text_of(console))
    for domain in run.domains:
        assert f"{domain} {run.losses[60][domain]:.3f} ({run.shares[domain]:.1%})" in lines[-1]


def test_elsewhere_what_happens_is_told_once(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=20)
    run.append("events.jsonl", {"step": 0, "kind": "attempt", "message": "of an earlier attempt"})
    console = plain_console(200)
    with RunView(run.path, run.domains, run.total_steps, console):
        run.append("events.jsonl", {"step": 20, "kind": "packing", "message": "kept apart by a mask"})
        wait_for(console, "step 20  packing  kept apart by a mask\n")
    assert text_of(console).count("kept apart") == 1
    assert "earlier attempt" not in text_of(console)


def test_what_came_after_the_last_look_is_still_shown(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=20, num_steps=0, every=20)
    console = plain_console()
    with RunView(run.path, run.domains, 20, console):
        run.write_steps(1, 20)
    assert "step 20/20" in text_of(console)


def test_the_view_leaves_no_thread_and_lets_errors_pass(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=20, num_steps=0)
    with pytest.raises(RuntimeError, match="trainer"), RunView(run.path, run.domains, 20, terminal_console()):
        raise RuntimeError("trainer")
    assert not [thread for thread in threading.enumerate() if thread.name == "live-view"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_names_are_text_and_cannot_steer_the_terminal(fake_run: MakeFakeRun, is_terminal: bool) -> None:
    run = fake_run(domains=HOSTILE, total_steps=20, every=20)
    run.append("events.jsonl", {"step": 3, "kind": "bad[/]", "message": "\x1b]0;title\x07[red]\nnext"})
    console = terminal_console(120) if is_terminal else plain_console(120)
    with RunView(run.path, run.domains, 20, console):
        pass
    with PreparationView(console) as preparation:
        for domain in HOSTILE:
            preparation.update(1, 1, domain, 5)
    console.print(summary_view(run.path))
    text = text_of(console)
    assert "[bold red]x[/]" in text and "\\x1b[2Jgone" in text
    assert "\x1b[2J" not in text and "\x1b]0;" not in text
    assert is_terminal or "\x1b" not in text


def test_no_color_is_obeyed(fake_run: MakeFakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    run = fake_run(total_steps=20, every=20)
    console = terminal_console()
    with RunView(run.path, run.domains, 20, console):
        pass
    assert not any(code in text_of(console) for code in ("\x1b[3", "\x1b[38", "\x1b[9"))


@pytest.mark.parametrize("width", [40, 80, 160])
def test_it_fits_the_terminal(fake_run: MakeFakeRun, width: int) -> None:
    run = fake_run(domains=("a" * 60, "b", "c"), total_steps=20, every=20)
    run.append("events.jsonl", {"step": 3, "kind": "bad_rows", "message": "long " * 60})
    assert max(len(line) for line in render(run, width).splitlines()) <= width
    assert len(render(run, width).splitlines()) <= 14


def test_before_the_first_file_it_waits(tmp_path_factory: pytest.TempPathFactory) -> None:
    console = plain_console()
    folder = tmp_path_factory.mktemp("runs") / "not-yet"
    view = RunView(folder, ["math"], 10, console)
    console.print(view.render())
    assert "waiting for the first step" in text_of(console) and "ETA -" in text_of(console)


def test_the_time_before_a_resumed_run_trains_is_no_part_of_its_pace(
    fake_run: MakeFakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fake_run(total_steps=60, num_steps=20, every=20)
    now = [0.0]
    monkeypatch.setattr("orchestrator.views.terminal.time", SimpleNamespace(monotonic=lambda: now[0]))
    console = plain_console()
    view = RunView(run.path, run.domains, 60, console)
    view._begin()
    now[0] = 600.0  # a cluster starts, models are loaded
    run.write_steps(21, 21)
    view._look()
    now[0] = 660.0
    run.write_steps(22, 40)
    view._look()
    last = text_of(console).splitlines()[-1]
    assert last.startswith("step 40/60") and f"ETA {format_duration(20 * 60 / 19)}" in last


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the view of a preparation sees it."""
    now = [100.0]
    monkeypatch.setattr("orchestrator.views.preparation.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_preparation_elsewhere_is_a_line_a_minute_and_one_per_domain(clock: list[float]) -> None:
    console = plain_console()
    with PreparationView(console) as view:
        for domain in ("math", "code"):
            view.update(0, 1000, domain, 0)
        for second in (20, 40, 60, 80, 100):
            clock[0] = 100.0 + second
            view.update(5 * second, 1000, "math", 30 * second)
        clock[0] = 300.0
        view.update(1001.0, sum([100.1] * 10), "math", 6000)  # the same but for rounding
        clock[0] += 50.0
        view.update(250, 1000, "code", 1000)
        clock[0] += 10.0
        view.update(300, 1000, "code", 1200)
    assert text_of(console).splitlines() == [
        "preparing math: 30%, 30 rows/s, 2 min 20 s left",
        "prepared math: 6,000 rows, 30 rows/s",
        "preparing code: 30%, 20 rows/s, 2 min 20 s left",
    ]


def test_preparation_in_a_terminal_shows_share_rate_and_time_left(clock: list[float]) -> None:
    console = terminal_console(90)
    with PreparationView(console) as view:
        view.update(0, 1000, "math", 0)
        clock[0] += 90.0
        view.update(250, 1000, "math", 18_000)
    last = re.sub("\x1b[^A-Za-z]*[A-Za-z]", "", text_of(console)).splitlines()[-1]
    assert "math" in last and "25%" in last and "200 rows/s, 4 min 30 s left" in last


def test_the_summary_names_losses_and_places(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40)
    (run.path / "model").mkdir()
    console = plain_console(200)
    console.print(summary_view(run.path))
    text = text_of(console)
    summary = json.loads((run.path / "summary.json").read_text())["domains"]["law"]
    row = next(line for line in text.splitlines() if "law" in line)
    for key in ("start", "best", "end"):
        assert f"{summary[f'loss_nats_{key}']:.3f}" in row
    assert f"{summary['loss_nats_end'] - summary['loss_nats_start']:+.3f}" in row
    assert f"20.0% -> {summary['share_final']:.1%}" in row
    assert str(run.path / "model") in text and "report" not in text.replace(str(run.path), "")


def test_durations_and_characters() -> None:
    cases = {4.4: "4 s", 750: "12 min 30 s", 11_100: "3 h 05 min", 187_200: "2 d 4 h", float("nan"): "-"}
    assert {seconds: format_duration(seconds) for seconds in cases} == cases
    assert printable("a\u202eb\n\u00e9") == "a\\u202eb\\n\u00e9"
