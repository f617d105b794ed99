"""What a search refuses before anything is started, and what it shows of what it found."""

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from orchestrator.config.errors import ConfigError
from orchestrator.sweeps.tune import driver
from orchestrator.sweeps.tune.driver import find_corners, search_folder, tune
from orchestrator.sweeps.tune.page import MAX_ROWS, table, write_search_page
from orchestrator.sweeps.tune.trials import Evaluation, SearchRecord, TrialRecord, Trials
from orchestrator.views.format import format_value
from tests.unit.sweeps.tune.searches import DOMAINS, config_with


def refused(space: dict[str, Any], **changes: Any) -> list[str]:
    config = config_with({"type": "random", "space": space}, **changes)
    with pytest.raises(ConfigError) as caught:
        find_corners(config, config.build_search())
    return caught.value.lines


def test_values_that_the_run_would_refuse_are_refused_before_the_first_trial() -> None:
    assert refused({"mixing.sigma": {"uniform": [-1.0, 1.0]}}) == [
        "search.space: mixing.sigma: is -1.0; input should be greater than 0"
    ]
    (line,) = refused({"mixing.sigam": {"uniform": [0.1, 1.0]}})
    assert "mixing.sigam" in line and "sigma" in line
    assert len(refused({"mixing.update": {"choice": ["ratio", "slope", "square"]}})) == 2


def test_a_choice_may_be_another_algorithm() -> None:
    options = [{"type": "uniform"}, {"type": "versatune", "reference": dict.fromkeys(DOMAINS, 1.0)}]
    config = config_with({"type": "random", "space": {"mixing": {"choice": options}}})
    space = config.build_search().space
    find_corners(config, config.build_search())
    trials = Trials(config, space, {}, "mean", None)
    found = [trials.run_of(point).mixing.type for point in space.draw_points(2, seed=0)]
    assert sorted(found) == ["uniform", "versatune"]


def test_regmix_varies_the_shares_whatever_the_runs_algorithm_is() -> None:
    config = config_with({"type": "regmix"})
    search = config.build_search()
    assert {corner.mixing.type for corner in find_corners(config, search)} == {"fixed"}
    assert [name.partition(":")[2] for name in search.space.coordinates] == list(DOMAINS)


def test_a_run_without_a_search_says_what_to_add(tmp_path: Path) -> None:
    config = config_with({"type": "regmix"}, output_dir=str(tmp_path)).model_copy(update={"search": None})
    with pytest.raises(ValueError, match=r"add a `search` section; examples/search\.yaml"):
        tune(config, Console())


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "find_spec", lambda name: None)
    config = config_with({"type": "optuna", "space": {"mixing.sigma": {"uniform": [0.1, 1.0]}}})
    with pytest.raises(ValueError, match=r"pip install 'raymix\[optuna\]'"):
        tune(config, Console())


def test_two_drivers_at_one_search_are_refused(tmp_path: Path) -> None:
    config = config_with({"type": "regmix"}, output_dir=str(tmp_path))
    search_folder(config).mkdir(parents=True)
    with (
        FileLock(search_folder(config) / ".driver.lock"),
        pytest.raises(RuntimeError, match="another process is running this search"),
    ):
        tune(config, Console())


def trial(name: str, state: Any, scores: list[float], **changes: Any) -> TrialRecord:
    course = [Evaluation(step=4 * number, score=value) for number, value in enumerate(scores, start=1)]
    losses = dict.fromkeys(DOMAINS, scores[-1] if scores else None)
    return TrialRecord(
        name=name,
        folder=Path(name),
        changes={key.replace("__", "."): value for key, value in changes.items()},
        state=state,
        reason="64 GPU" if state == "failed" else "",
        course=course,
        losses_nats=losses,
    )


@pytest.fixture
def record() -> SearchRecord:
    shares = {"math": 0.5, "code": 0.25, "law": 0.25}
    trials = [
        trial("bad", "finished", [5.0, 4.5], mixing__sigma=0.25, mixing__initial=shares),
        trial("gone", "ended early", [2.0], mixing__sigma=0.5, mixing__initial=shares),
        trial("good", "finished", [3.0, 2.125], mixing__sigma=0.75, mixing__initial=shares),
        trial("broken", "failed", [], mixing__sigma=1.0, mixing__initial=shares),
    ]
    return SearchRecord(
        name="tuned",
        type="random",
        metric="mean loss",
        base_score=6.5,
        trials=trials,
        best="good",
        notes=["Something <else>."],
    )


def test_the_table_has_the_best_first_and_says_what_became_of_the_others(record: SearchRecord) -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table(record).to_rich(MAX_ROWS))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0] == ["Run", "mean", "loss", "steps", "sigma", "initial"]
    good, bad, gone, broken = lines[2:14:3]  # a line for each domain of the mix
    assert [line[0] for line in (good, bad, gone, broken)] == ["good", "bad", "gone", "broken"]
    assert good[1:] == ["2.125", "8", "0.75", "math", "50.0%"] and lines[3:5] == [["code", "25.0%"], ["law", "25.0%"]]
    assert gone[1:4] == ["2.000", "(ended", "early)"] and broken[1] == "failed"
    assert lines[14] == ["Something", "<else>."]


def test_values_are_short() -> None:
    assert format_value(0.000123456) == "0.0001235"
    assert format_value({"math": 0.125, "law": 0.875}) == "math 12.5%, law 87.5%"
    assert format_value({"type": "uniform"}) == "type uniform"
    assert format_value("ratio") == "ratio" and format_value(None) == "-"


def test_the_page_has_the_table_the_courses_and_a_plot_for_each_value(record: SearchRecord, tmp_path: Path) -> None:
    write_search_page(record, tmp_path / "search.html")
    page = (tmp_path / "search.html").read_text()
    for text in ("4 trials of a random search", "2.000 (ended early)", "mixing.sigma", "initial: math", "64 GPU"):
        assert text in page, text
    assert "Something &lt;else&gt;." in page
