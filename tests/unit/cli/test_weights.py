"""`raymix weights` on the folder of a run whose controller is under way in this process."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.cli.main import app
from orchestrator.controller.journal import DurableController
from orchestrator.views import weights
from tests.unit.controller.test_journal import open_controller

Raymix = Callable[..., tuple[str, str]]


@pytest.fixture
def controller(tmp_path: Path) -> DurableController:
    (tmp_path / "config.json").write_text(json.dumps({"name": "r"}))
    return open_controller(tmp_path)


@pytest.fixture
def raymix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Raymix:
    """Runs `raymix weights RUN ...`: what it prints, and what it complains of."""

    def run(*words: str) -> tuple[str, str]:
        app(["weights", str(tmp_path), *words], standalone_mode=False)
        said = capsys.readouterr()
        return " ".join(said.out.split()), said.err

    return run


@pytest.fixture
def steps(controller: DurableController) -> Iterator[None]:
    """Pulls the weights of one step after the other, as a training does."""
    is_over = threading.Event()

    def work() -> None:
        step = 0
        while not is_over.wait(0.01):
            step += 1
            controller.pull(step)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    is_over.set()
    thread.join()


@pytest.mark.usefixtures("steps")
def test_what_a_person_asks_for_is_a_version_and_shown(controller: DurableController, raymix: Raymix) -> None:
    assert "a 50.0%" in raymix("show")[0].replace(" %", "%") and "version 0, from step 1 on" in raymix("show")[0]
    told, _ = raymix("pin", "a=0.25", "--by", "anna", "--why", "a court waits")
    assert told.startswith("version 1 applies from step") and "anna" in told
    assert raymix("pause", "--by", "ben")[0].startswith("version 2 ")
    shown, _ = raymix("show")
    assert "pinned" in shown and "the algorithm is paused" in shown and "by ben (operator)" in shown
    raymix("resume", "--by", "ben")
    raymix("release", "--by", "ben")
    history, _ = raymix("history")
    assert "a court waits" in history and "* pinned" in history and "paused" in history
    assert [version.pinned for version in controller.history()] == [[], ["a"], ["a"], ["a"], []]


@pytest.mark.usefixtures("steps")
def test_what_cannot_be_is_refused(raymix: Raymix) -> None:
    _, error = raymix("set", "a=0.7", "b=0.7", "--by", "anna")
    assert "refused" in error or "1.4" in error


def test_a_request_waits_for_a_run_that_does_not_train(
    controller: DurableController, raymix: Raymix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PATIENCE_SECONDS", 0.1)
    told, _ = raymix("set", "a=0.2", "--by", "anna")
    assert told == "requested; takes effect at the next step, or when the run resumes"
    assert "1 change waiting for the next step" in raymix("show")[0]
    raymix("pause", "--by", "anna")
    assert "2 changes waiting" in raymix("show")[0]
    controller.pull(1)
    assert controller.history()[-2].shares["a"] == pytest.approx(0.2)
