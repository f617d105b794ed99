"""The dashboard: seconds until a browser shows the plots of a run of 100,000 steps with seven domains.

    python benchmarks/dashboard.py [--steps 100000] [--rounds 5] [--json FILE]

Run folders are made, `raymix dashboard` is started on them, and a headless Chromium opens the long run's page, with
nothing in its cache. Each round has a new server. Where the run is one of the newest, the server has begun to read it
before anybody asks; an older one it has not. The page is opened once more, when the server knows the run. A page is
open when its numbers and table are there and a screen of plots is drawn: the reader scrolls to the first plot as soon
as there is a place for it. All plots: the reader goes on to the page's end. Then the run goes on, and the time from a
step's line on disk to the browser's plot is measured.
"""

import argparse
import asyncio
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

from orchestrator.dashboard.following import MAX_IDLE_PAGES
from workers.contracts import DomainFeedback, DomainWeights

DOMAINS = ("code", "finance", "general", "law", "math", "medicine", "science")
EVERY = 100
NUM_LIVE_STEPS = 7
CLICK_SECONDS = 2.0  # that a person needs from the address in the terminal to the browser
SCREEN = {"width": 1280, "height": 900}
NUMBERS = "Boolean(document.querySelector('.facts dd') && document.querySelector('[data-part=table] tbody td'))"
IN_VIEW = "[...document.querySelectorAll('.plot')].filter(e => e.getBoundingClientRect().top < innerHeight)"
DRAWN = f"document.querySelector('.plot') && {IN_VIEW}.every(e => e.classList.contains('js-plotly-plot'))"
LAST_STEP = "document.querySelector('.plot')._fullData[0].x.at(-1)"


def metric_line(step: int, rng: random.Random) -> str:
    """As training writes it."""
    rows = {name: rng.randrange(4) for name in DOMAINS}
    line = {
        "step": step,
        "loss_nats": 2.0 + rng.random(),
        "domain_loss_nats": {name: 1.5 + rng.random() if rows[name] else None for name in DOMAINS},
        "num_tokens": 1984,
        "num_loss_tokens": 613,
        "weights_version": step // EVERY,
        "rows": rows,
        "epochs": {name: step * 0.001 * (1 + index) for index, name in enumerate(DOMAINS)},
        "tokens_per_second": 1134.0 + 99 * rng.random(),
        "learning_rate": 2e-5 * rng.random(),
        "grad_norm": rng.random(),
        "seconds": 1.7 + rng.random(),
    }
    return json.dumps(line) + "\n"


def write_run(folder: Path, num_steps: int) -> None:
    """A run of `num_steps` that is not finished, with an evaluation every 100 steps."""
    rng = random.Random(0)
    for part in ("weights", "feedback"):
        (folder / part).mkdir(parents=True)
    config = {
        "name": "long",
        "model": {"path": "base"},
        "domains": {name: {"train": f"{name}.jsonl"} for name in DOMAINS},
        "mixing": {"type": "versatune"},
        "training": {"max_steps": 2 * num_steps},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(metric_line(step, rng) for step in range(1, num_steps + 1))
    with (folder / "mixing.jsonl").open("w") as mixing:
        for version, step in enumerate(range(0, num_steps + 1, EVERY)):
            raw = [0.2 + rng.random() for _ in DOMAINS]
            shares = {name: value / math.fsum(raw) for name, value in zip(DOMAINS, raw, strict=True)}
            weights = DomainWeights(
                version=version, effective_step=step + 1, shares=shares, reason="algorithm", by="versatune"
            )
            (folder / "weights" / f"{version:06d}.json").write_text(weights.model_dump_json())
            feedback = DomainFeedback(
                run_id="r",
                attempt=1,
                step=step,
                weights_version=version,
                loss_sum_nats={name: 4000 * (1.0 + rng.random()) for name in DOMAINS},
                num_tokens=dict.fromkeys(DOMAINS, 4000),
            )
            (folder / "feedback" / f"{step:08d}.json").write_text(feedback.model_dump_json())
            values = {f"{key}/{name}": rng.random() for key in ("gamma", "phi") for name in DOMAINS}
            mixing.write(json.dumps({"step": step, "weights_version": version, "values": values}) + "\n")


class Browser:
    """A headless Chromium that is steered over its own protocol, without the domains that a debugger turns on.

    A driver such as Playwright turns them on; Chromium then reads a script again for every exception in it that it
    catches by itself, which costs plotly's half a second or more. People who look at a page have none of that.
    """

    def __init__(self, folder: Path) -> None:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        port_file = folder / "DevToolsActivePort"
        options = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        self._process = subprocess.Popen([chromium, *options, "about:blank"], stderr=subprocess.DEVNULL)
        wait_until(lambda: port_file.exists() and port_file.read_text().count("\n"))
        port, path = port_file.read_text().split()
        self._runner = asyncio.Runner()
        self._client, self._socket = self._runner.run(self._connect(f"ws://127.0.0.1:{port}{path}"))
        self._num_sent = 0

    @staticmethod
    async def _connect(address: str) -> tuple[ClientSession, ClientWebSocketResponse]:
        client = ClientSession()
        return client, await client.ws_connect(address, max_msg_size=0)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._num_sent += 1
        command = {"id": self._num_sent, "method": method, "params": parameters}
        answer = self._runner.run(self._ask(command | ({} if session is None else {"sessionId": session})))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json(command)
        while (answer := await self._socket.receive_json()).get("id") != command["id"]:
            continue
        return answer

    def open_page(self) -> "Page":
        """A page that knows nothing of those before it: no cache, no compiled script."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Emulation.setDeviceMetricsOverride", session, **SCREEN, deviceScaleFactor=1, mobile=False)
        return Page(self, session, context)

    def close(self) -> None:
        """End the process."""
        self._runner.run(self._client.close())
        self._runner.close()
        self._process.terminate()
        self._process.wait(30)


@dataclass(frozen=True)
class Page:
    """A tab."""

    browser: Browser
    session: str
    context: str

    def go_to(self, address: str) -> None:
        """Begin to load; returns when the first bytes are there."""
        self.browser.call("Page.navigate", self.session, url=address)

    def evaluate(self, expression: str) -> Any:
        """A value of the page."""
        answer = self.browser.call("Runtime.evaluate", self.session, expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until this comes true."""
        wait_until(lambda: self.evaluate(expression))

    def close(self) -> None:
        """With everything that it has kept."""
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)


def wait_until(is_time: Callable[[], Any]) -> None:
    """Look again and again."""
    end = time.monotonic() + 120
    while not is_time():
        if time.monotonic() > end:
            raise TimeoutError("the moment never came")
        time.sleep(0.01)


def measure_opening(browser: Browser, address: str) -> tuple[dict[str, float], Page]:
    """Seconds from asking for the address to the numbers, to the plots of a screen, and to all plots of the page."""
    page = browser.open_page()
    began = time.perf_counter()
    page.go_to(address)
    page.wait_for(NUMBERS)
    numbers = time.perf_counter() - began
    page.wait_for("Boolean(document.querySelector('.plot'))")
    page.evaluate("document.querySelector('.plot').scrollIntoView()")
    page.wait_for(DRAWN)
    screen = time.perf_counter() - began
    for index in range(page.evaluate("document.querySelectorAll('.plot').length")):
        plot = f"document.querySelectorAll('.plot')[{index}]"
        page.evaluate(f"{plot}.scrollIntoView()")
        page.wait_for(f"{plot}.classList.contains('js-plotly-plot')")
    return {"numbers": numbers, "screen": screen, "all": time.perf_counter() - began}, page


def measure_following(page: Page, run: Path, num_steps: int) -> list[float]:
    """Seconds from a step's line on disk to the browser's plot."""
    page.evaluate("document.querySelector('.plot').scrollIntoView()")
    rng = random.Random(1)
    seconds = []
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(num_steps + 1, num_steps + NUM_LIVE_STEPS + 1):
            file.write(metric_line(step, rng))
            file.flush()
            began = time.perf_counter()
            page.wait_for(f"{LAST_STEP} === {step}")
            seconds.append(time.perf_counter() - began)
            time.sleep(1.0 + rng.random())  # at no fixed moment between two looks of the server
    return seconds


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """`raymix dashboard`; its address."""
    command = [sys.executable, "-m", "orchestrator.cli.main", "dashboard", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(line for line in server.stdout if line.startswith("http")).split("#")[0]
        time.sleep(CLICK_SECONDS)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def measure(num_steps: int, num_rounds: int) -> dict[str, Any]:
    """Medians, in seconds."""
    rounds: dict[str, list[dict[str, float]]] = {"recent": [], "old": [], "later": []}
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(Path(folder) / "browser")
        try:
            for kind, num_newer in (("old", MAX_IDLE_PAGES), ("recent", 1)):
                runs = Path(folder) / kind
                write_run(runs / "long", num_steps)
                for number in range(num_newer):
                    write_run(runs / f"newer-{number}", EVERY)
                for _ in range(num_rounds):
                    with serve(runs) as base:
                        seconds, page = measure_opening(browser, f"{base}run/long")
                        rounds[kind].append(seconds)
                        page.close()
                        if kind == "recent":  # the server knows the run by now, and the browser nothing
                            seconds, page = measure_opening(browser, f"{base}run/long")
                            rounds["later"].append(seconds)
                            if len(rounds["later"]) == num_rounds:
                                followed = measure_following(page, runs / "long", num_steps)
                            page.close()
        finally:
            browser.close()
    medians = {
        name: {key: statistics.median(each[key] for each in opened) for key in opened[0]}
        for name, opened in rounds.items()
    }
    return {"num_steps": num_steps, "rounds": rounds, **medians, "step_to_plot": statistics.median(followed)}


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.steps, arguments.rounds)
    print(f"a run of {figures['num_steps']:,} steps, {len(DOMAINS)} domains")
    print(f"{'median of ' + str(arguments.rounds):<44}{'numbers':>12}{'a screen of plots':>20}{'all plots':>12}")
    for name, key in (
        (f"first opening, one of the newest {MAX_IDLE_PAGES} runs", "recent"),
        ("first opening, an older run", "old"),
        ("later openings", "later"),
    ):
        numbers, screen, all_plots = (f"{figures[key][part]:.2f} s" for part in ("numbers", "screen", "all"))
        print(f"{name:<44}{numbers:>12}{screen:>20}{all_plots:>12}")
    print(f"{'a live step, from disk to plot':<44}{'':>12}{figures['step_to_plot']:>18.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
