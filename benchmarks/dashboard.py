"""The dashboard: seconds until a browser shows the plots of a run of 100,000 steps with seven domains.

    python benchmarks/dashboard.py [--steps 100000] [--rounds 5] [--json FILE]

A run folder is made, `raymix dashboard` is started on it, and a headless Chromium opens the run's page. The first round
finds a server that has never read the run, each round a browser with nothing in its cache. Then the run goes on by a
step a second, and the time from the step's line on disk to the browser's plot is measured.
"""

import argparse
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from workers.contracts import DomainFeedback, DomainWeights

DOMAINS = ("code", "finance", "general", "law", "math", "medicine", "science")
EVERY = 100
NUM_LIVE_STEPS = 5
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


def wait_until(page: Page, expression: str) -> None:
    """Playwright's own wait evaluates strings inside the page, which the page's policy forbids."""
    end = time.monotonic() + 120
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise TimeoutError(expression)
        time.sleep(0.01)


def measure_opening(browser: Browser, address: str) -> tuple[dict[str, float], Page]:
    """Seconds from the navigation to the plots in view, and to all plots of the page."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector(".plot", state="attached", timeout=120_000)
    page.evaluate("document.querySelector('.plot').scrollIntoView()")
    wait_until(page, DRAWN)
    in_view = time.perf_counter() - began
    for index in range(page.locator(".plot").count()):
        plot = f"document.querySelectorAll('.plot')[{index}]"
        page.evaluate(f"{plot}.scrollIntoView()")
        wait_until(page, f"{plot}.classList.contains('js-plotly-plot')")
    return {"in_view_seconds": in_view, "all_seconds": time.perf_counter() - began}, page


def measure_following(page: Page, run: Path, num_steps: int) -> list[float]:
    """Seconds from a step's line on disk to the browser's plot."""
    page.evaluate("document.querySelector('.plot').scrollIntoView()")
    seconds = []
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(num_steps + 1, num_steps + NUM_LIVE_STEPS + 1):
            file.write(metric_line(step, random.Random(step)))
            file.flush()
            began = time.perf_counter()
            wait_until(page, f"{LAST_STEP} === {step}")
            seconds.append(time.perf_counter() - began)
            time.sleep(1.0)
    return seconds


def measure(num_steps: int, num_rounds: int) -> dict[str, Any]:
    """All figures, in seconds."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = Path(folder) / "long"
        write_run(run, num_steps)
        command = [sys.executable, "-m", "orchestrator.cli", "dashboard", folder, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            base = next(line for line in server.stdout if line.startswith("http")).split("#")[0]
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            rounds = []
            for _ in range(num_rounds):
                opened, page = measure_opening(browser, f"{base}run/long")
                rounds.append(opened)
            followed = measure_following(page, run, num_steps)
            browser.close()
        finally:
            server.terminate()
            server.wait(30)
    later = rounds[1:] or rounds
    return {
        "num_steps": num_steps,
        "first": rounds[0],
        "later": {key: statistics.median(each[key] for each in later) for key in rounds[0]},
        "step_to_plot_seconds": statistics.median(followed),
    }


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.steps, arguments.rounds)
    print(f"a run of {figures['num_steps']:,} steps, {len(DOMAINS)} domains")
    print(f"{'':<36}{'plots in view':>15}{'all plots':>12}")
    for name, key in (("first opening, the run never read", "first"), ("later openings, median", "later")):
        print(f"{name:<36}{figures[key]['in_view_seconds']:>13.2f} s{figures[key]['all_seconds']:>10.2f} s")
    print(f"{'a live step, from disk to plot':<36}{figures['step_to_plot_seconds']:>13.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
