"""What changed is enough to make the new page of the old one, and little is sent of a run that goes on."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from orchestrator.dashboard.catalog import Catalog
from orchestrator.dashboard.following import Snapshot, figure_patch
from orchestrator.dashboard.pages import ComparePage, RunPage
from tests.unit.benchmarks.scores import scored
from tests.unit.conftest import MakeFakeRun
from workers.events import log_event


def patched(figure: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """As the page's script does it."""
    if "figure" in patch:
        return {**figure, **patch["figure"]}
    figure = copy.deepcopy(figure)
    figure["layout"] = patch.get("layout", figure["layout"])
    for index, keys in patch["traces"].items():
        trace = figure["data"][int(index)]
        for key, value in keys.items():
            trace[key] = [*trace[key][: value["from"]], *value["values"]] if "from" in value else value["value"]
    return figure


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def follow(page: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    message = through_json(message)
    figures = message.get("figures", page.get("figures", []))
    for index, patch in message.get("patches", {}).items():
        figures[int(index)] = patched(figures[int(index)], patch)
    values = message["values"] or page.get("values", {})
    return {"parts": {**page.get("parts", {}), **message["parts"]}, "figures": figures, "values": values}


def whole_of(page: RunPage | ComparePage) -> Snapshot:
    snapshot = page.look()
    assert snapshot is not None
    return snapshot


def test_a_live_run_is_followed_by_its_changes(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    run = fake_run("live", total_steps=1000, num_steps=700, every=50)
    page = RunPage(Catalog(tmp_path), "live")
    snapshot = whole_of(page)
    shown = follow({}, snapshot.whole())
    assert page.look() is None
    for first, last in ((701, 701), (702, 749), (750, 800)):
        run.write_steps(first, last)
        new = whole_of(page)
        message = new.changes(snapshot)
        assert message is not None
        shown, snapshot = follow(shown, message), new
        assert shown == through_json(new.whole())
    assert "step 800 of 1,000" in shown["parts"]["numbers"]


def test_benchmarks_come_when_a_finished_run_is_evaluated(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    runs = [fake_run(name, total_steps=40, every=10) for name in ("a", "b")]
    pages = (RunPage(Catalog(tmp_path), "a"), ComparePage(Catalog(tmp_path), ["a", "b"]))
    for page in pages:
        assert "Benchmarks" not in whole_of(page).parts["sections"]
    for run in runs:
        scored(run, base=0.25, result=0.5)
    for page in pages:
        assert "Benchmarks" in whole_of(page).parts["sections"]


def test_one_more_step_is_a_small_message(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    run = fake_run("live", total_steps=9000, num_steps=5000, every=500)
    page = RunPage(Catalog(tmp_path), "live")
    before = whole_of(page)
    run.write_steps(5001, 5001)
    message = whole_of(page).changes(before)
    assert message is not None
    whole = len(json.dumps(before.whole()))
    assert len(json.dumps(message["patches"])) < whole / 20
    assert set(message["parts"]) <= {"numbers", "health", "table"}


def test_the_newest_event_is_on_top(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    run = fake_run("live", total_steps=100, num_steps=10, every=20)
    for step in (3, 7):
        log_event(run.path, step, "budget", f"said at {step}")
    shown = whole_of(RunPage(Catalog(tmp_path), "live")).parts["events"]
    assert 0 <= shown.index("said at 7") < shown.index("said at 3")


def test_a_new_plot_brings_the_whole_page(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    run = fake_run("live", total_steps=100, num_steps=10, every=20)
    page = RunPage(Catalog(tmp_path), "live")
    before = whole_of(page)
    assert "Gained and forgotten" not in before.parts["sections"]
    run.write_steps(11, 20)
    message = whole_of(page).changes(before)
    assert message is not None and "Gained and forgotten" in message["parts"]["sections"] and "figures" in message


def test_runs_side_by_side_are_followed_too(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    fake_run("done", total_steps=40, every=20)
    run = fake_run("live", total_steps=80, num_steps=30, every=20)
    page = ComparePage(Catalog(tmp_path), ["done", "live"])
    snapshot = whole_of(page)
    shown = follow({}, snapshot.whole())
    assert page.look() is None
    run.write_steps(31, 60)
    new = whole_of(page)
    message = new.changes(snapshot)
    assert message is not None
    assert follow(shown, message) == through_json(new.whole())


def test_a_new_run_in_the_place_of_another_is_not_mixed_with_it(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    fake_run("again", total_steps=100, num_steps=60, every=20)
    pages = RunPage(Catalog(tmp_path), "again"), ComparePage(Catalog(tmp_path), ["again"])
    for page in pages:
        whole_of(page)
    shutil.rmtree(tmp_path / "again")
    run = fake_run("again", total_steps=100, num_steps=10, every=20, seed=1)
    first = json.loads((run.path / "weights" / "000000.json").read_text())["shares"]
    for page in pages:
        snapshot = whole_of(page)
        (shares,) = [f for f in snapshot.figures if any(trace.get("stackgroup") for trace in f["data"])]
        assert [list(trace["y"]) for trace in shares["data"]] == [[share, share] for share in first.values()]


def test_a_patch_names_only_what_differs() -> None:
    old = {"data": [{"x": [1, 2, 3], "y": [1.0, 2.0, 2.5], "name": "a"}], "layout": {"height": 10}}
    new = {"data": [{"x": [1, 2, 3, 4], "y": [1.0, 2.0, 2.6, 2.7], "name": "a"}], "layout": {"height": 10}}
    assert figure_patch(old, old) is None
    patch = figure_patch(old, new)
    assert patch == {"traces": {0: {"x": {"from": 3, "values": [4]}, "y": {"from": 2, "values": [2.6, 2.7]}}}}
    shorter = {"data": [{"x": [1], "y": [1.0], "name": "b"}], "layout": {"height": 11}}
    assert patched(new, through_json(figure_patch(new, shorter))) == shorter
    assert figure_patch(old, {"data": [], "layout": {}}) == {"figure": {"data": [], "layout": {}}}
