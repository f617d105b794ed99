"""The dashboard in a real, headless Chromium: the list, a run, a comparison; a run that goes on; the controls."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.controller.operator import read_request, waiting_requests
from tests.dashboards import Server
from tests.runs import ROOT
from tests.unit.conftest import make_fake_run_in

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install -e '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

HOSTILE = "<img src=x onerror=alert(1)>"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("runs")
    make = make_fake_run_in(root)
    for seed, name in enumerate(("alpha", "study-compare/one-seed0", "study-compare/two-seed0")):
        (root / name).parent.mkdir(exist_ok=True)
        make(name, total_steps=40, every=10, seed=seed)
    make("hostile", domains=(HOSTILE, "plain"), total_steps=40, every=10)
    make("steered", total_steps=100, num_steps=30, every=10)
    server = Server(root)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """A tab that must ask nobody but the server, show no dialog and log no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: None if request.url.startswith(server.base) else faults.append(request.url))
    page.faults = faults
    yield page
    context.close()
    assert [fault for fault in faults if not fault.startswith("data:")] == []


def wait_for_plots(page: Any) -> None:
    """Every plot of the page is drawn, each as it comes into view."""
    page.wait_for_selector(".plot")
    for index, plot in enumerate(page.locator(".plot").all()):
        plot.scroll_into_view_if_needed()
        wait_until(page, f"document.querySelectorAll('.plot')[{index}].classList.contains('js-plotly-plot')")


def wait_until(page: Any, expression: str) -> None:
    """Playwright's own wait evaluates strings inside the page, which the page's policy forbids."""
    end = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression} did not come true"
        page.wait_for_timeout(100)


def traces(page: Any, label: str) -> dict[str, dict[str, Any]]:
    """What plotly holds for one plot: its traces by name."""
    script = "e => e.data.map(({name, x, y, z, stackgroup}) => ({name, x, y, z, stackgroup}))"
    return {trace.get("name", ""): trace for trace in plot_of(page, label).evaluate(script)}


def plot_of(page: Any, label: str) -> Any:
    """The element of a plot, by its section and title."""
    return page.locator(f'.plot[aria-label="{label}"], .plot[aria-label="{label} "]')


def test_it_listens_on_this_machine_only(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    listening = [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


def test_from_the_list_to_a_comparison(page: Any, server: Server) -> None:
    page.goto(server.url)
    row = page.locator("tr", has=page.locator('input[data-run="alpha"]'))
    row.wait_for()
    assert [part in row.inner_text() for part in ("alpha", "finished", "versatune", "40 / 40")] == [True] * 4
    assert "token" not in page.url
    page.check('input[data-group="study-compare"]')
    page.check('input[data-run="alpha"]')
    assert page.locator("#chosen span").inner_text() == "3 runs selected"
    page.click("#chosen a")
    wait_for_plots(page)
    assert set(traces(page, "Loss per domain law")) == {"alpha", "one-seed0", "two-seed0"}
    assert page.locator(".results tbody tr").count() == 3
    assert page.locator(".results strong").count() > 3


def test_a_run_shows_what_its_files_say(page: Any, server: Server) -> None:
    page.goto(f"{server.base}/run/alpha")
    wait_for_plots(page)
    titles = page.locator("h2").all_inner_texts()
    wanted = ["Steer", "Health", "Shares over time", "Loss per domain", "Gained and forgotten", "Epochs"]
    assert [title for title in titles if title in wanted] == wanted and "Inside the algorithm" in titles
    folder = server.root / "alpha"
    versions = [json.loads(path.read_text()) for path in sorted(folder.glob("weights/*.json"))]
    shares = traces(page, "Shares over time")
    assert shares["law"]["y"][:-1] == [version["shares"]["law"] for version in versions]
    assert {trace["stackgroup"] for trace in shares.values()} == {"shares"}
    losses = [json.loads(path.read_text()) for path in sorted(folder.glob("feedback/*.json"))]
    held_out = traces(page, "Loss per domain code")["held out"]["y"]
    assert held_out == pytest.approx([item["loss_sum_nats"]["code"] / item["num_tokens"]["code"] for item in losses])
    (heat,) = traces(page, "Gained and forgotten").values()
    assert len(heat["z"]) == 5 and heat["z"][0][0] == 0 and heat["z"][4][-1] > 0
    page.click('.domains button[data-domain="law"]')
    assert page.locator('figure[data-domain="law"]').is_hidden()
    visible = "e => Object.fromEntries(e.data.map(t => [t.name, t.visible]))"
    plot = plot_of(page, "Shares over time")
    plot.scroll_into_view_if_needed()
    wait_until(page, "document.querySelector('.plot').data.some(t => t.visible === false)")
    assert plot.evaluate(visible) == {"math": True, "code": True, "law": False, "medicine": True, "general": True}


def test_a_live_run_is_followed_to_its_end(page: Any, server: Server) -> None:
    command = [sys.executable, "-m", "tests.integration.growing_run", str(server.root / "growing"), "25", "60"]
    page.goto(server.url)
    page.wait_for_selector('input[data-run="alpha"]')
    with subprocess.Popen(command, cwd=ROOT):
        page.click('a[href="/run/growing"]')  # it comes by itself
        wait_for_plots(page)
        assert len(traces(page, "Epochs")["law"]["x"]) == 25
        assert page.locator(".lead .state").inner_text() == "running"
        page.evaluate("window.isTheSamePage = true")
        plot_of(page, "Epochs").scroll_into_view_if_needed()
        (server.root / "growing" / "go").touch()
        wait_until(page, "document.querySelector('.plot[aria-label=\"Epochs \"]')._fullData[0].x.length > 25")
        wait_until(page, "document.querySelector('.lead .state').textContent === 'finished'")
    lines = (server.root / "growing" / "metrics.jsonl").read_text().splitlines()
    plot_of(page, "Epochs").scroll_into_view_if_needed()
    epochs = [json.loads(line)["epochs"]["law"] for line in lines]
    wait_until(page, "document.querySelector('.plot[aria-label=\"Epochs \"]')._fullData[0].x.length === 60")
    assert traces(page, "Epochs")["law"]["y"] == pytest.approx(epochs)
    assert "step 60 of 60" in page.inner_text("main") and page.evaluate("window.isTheSamePage")


def test_a_person_steers_with_the_token_and_not_without(page: Any, browser: Any, server: Server) -> None:
    folder = server.root / "steered"

    def ask(page: Any) -> None:
        page.goto(f"{server.base}/run/steered")
        page.click("#steer summary")
        page.fill("input[name=by]", "ada")
        page.fill("input[name=why]", "exam week")
        page.fill('input[name=share][data-domain="law"]', "40")
        page.click("button[data-kind=pin]")

    stranger = browser.new_page()
    ask(stranger)
    stranger.wait_for_selector(".outcome.worse")
    assert "token" in stranger.inner_text(".outcome") and waiting_requests(folder) == []
    stranger.close()

    page.goto(server.url)
    page.wait_for_selector('input[data-run="steered"]')
    ask(page)
    page.wait_for_selector(".outcome.better")
    page.wait_for_selector(".waiting")
    (request_id,) = waiting_requests(folder)
    request = read_request(folder, request_id)
    assert (request.kind, request.shares, request.by, request.why) == ("pin", {"law": 0.4}, "ada", "exam week")
    page.fill('input[name=share][data-domain="law"]', "140")
    page.evaluate("document.querySelector('#steer form').noValidate = true")
    page.click("button[data-kind=set]")
    page.wait_for_selector(".outcome.worse")
    assert "shares" in page.inner_text(".outcome")
    page.faults[:] = [fault for fault in page.faults if "422" not in fault]  # the browser notes each refusal


def test_hostile_names_stay_names(page: Any, server: Server) -> None:
    for path in ("/run/hostile", "/compare?run=hostile&run=alpha"):
        page.goto(server.base + path)
        wait_for_plots(page)
        assert page.locator("img").count() == 0 and HOSTILE in page.inner_text("main")
        drawn = page.locator(".plot text").all_text_contents()
        assert path.startswith("/compare") or any("<img" in text for text in drawn)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_by_day_and_by_night(browser: Any, server: Server, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, is_mobile=True)
    page = context.new_page()
    for path in ("/", "/run/alpha", "/compare?run=alpha&run=study-compare/one-seed0"):
        page.goto(server.base + path)
        page.wait_for_selector(".runs td.steps, .plot")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    lightness = page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert (lightness > 128) == (scheme == "light")
    context.close()


def test_a_taken_port_and_a_missing_folder_are_told_in_a_line(server: Server, tmp_path: Path) -> None:
    port = server.base.rsplit(":", 1)[1]
    for arguments, words in (([str(tmp_path), "--port", port], "--port"), ([str(tmp_path / "none")], "not a folder")):
        command = [sys.executable, "-m", "orchestrator.cli.main", "dashboard", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
