"""The report: its data are the files' numbers, names are harmless, half a run is no error, and it stays small."""

import html
import io
import json
import math
import re
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.summary import base_losses
from orchestrator.views.format import color_by_name
from orchestrator.views.report.comparison import comparison_table
from orchestrator.views.report.figures import MAX_POINTS, Thinning
from orchestrator.views.report.html import write_report
from tests.unit.conftest import FakeRun, MakeFakeRun
from workers.validation.loss_statistics import ExampleLosses

Page = tuple[str, dict[str, dict[str, Any]]]


def report_of(*runs: FakeRun) -> Page:
    """The page without its scripts, and its plots by "section/title"."""
    output = runs[0].path / "report.html"
    write_report([run.path for run in runs], output)
    text = output.read_text().replace(get_plotlyjs(), "")
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    figures = json.loads(data.group(1))
    labels = re.findall(r'role="img" aria-label="(.*?)"', text)
    assert len(labels) == len(figures)
    visible = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    return visible, dict(zip((html.unescape(label).strip() for label in labels), figures, strict=True))


def metric_lines(run: FakeRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_shares_are_those_of_the_journal_drawn_as_steps(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=60, every=20)
    _, plots = report_of(run)
    versions = [json.loads(path.read_text()) for path in sorted((run.path / "weights").glob("*.json"))]
    traces = plots["Shares over time"]["data"]
    assert [trace["name"] for trace in traces] == run.domains
    for trace in traces:
        assert trace["line"]["shape"] == "hv" and trace["stackgroup"]
        assert trace["x"] == [*(version["effective_step"] - 1 for version in versions), 60]
        shares = [version["shares"][trace["name"]] for version in versions]
        assert trace["y"] == [*shares, shares[-1]]


def test_what_a_person_set_is_marked(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=60, num_steps=40, every=20)
    run.write_weights(effective_step=51, reason="operator")
    _, plots = report_of(run)
    (line,) = plots["Shares over time"]["layout"]["shapes"]
    assert line["x0"] == line["x1"] == 50


def test_losses_are_those_of_feedback_and_metrics(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=60, every=20)
    _, plots = report_of(run)
    for domain in run.domains:
        plot = plots[f"Loss per domain {domain}"]
        training, held_out, low, high = plot["data"]
        assert training["x"] == list(range(1, 61))
        assert training["y"] == [line["domain_loss_nats"][domain] for line in metric_lines(run)]
        assert None in training["y"] and not training["connectgaps"]
        assert held_out["x"] == [0, 20, 40, 60]
        assert held_out["y"] == pytest.approx([run.losses[step][domain] for step in (0, 20, 40, 60)])
        (base,) = plot["layout"]["shapes"]
        assert base["y0"] == base["y1"] == pytest.approx(run.losses[0][domain])
        error = 0.011 + 0.001 * run.domains.index(domain)
        for edge, sign in ((low, -1), (high, 1)):
            assert edge["x"] == held_out["x"]
            assert edge["y"] == pytest.approx([loss + sign * 2 * error for loss in held_out["y"]])
        assert "fill" not in low and high["fill"] == "tonexty"


def test_a_run_of_an_older_version_is_shown_without_errors(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=60, every=20, num_steps=0)
    run.has_errors = False
    run.write_start()
    run.write_steps(1, 60)
    run.write_summary()
    page, plots = report_of(run)
    assert "\u00b1" not in page and "No standard errors were recorded" in page
    assert len(plots["Loss per domain law"]["data"]) == 2
    (heatmap,) = plots["Gained and forgotten"]["data"]
    assert not any("(" in text or "\u00b1" in text for row in heatmap["text"] for text in row)
    # As before, any change that can be seen is coloured.
    assert page.count('<td class="better">') == 4 and page.count('<td class="worse">') == 1


def test_a_change_that_may_be_noise_is_not_coloured_and_stands_in_brackets(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=60, every=20)
    base = run.losses[0]
    changes = {"math": 0.0021, "code": -0.0021, "law": 0.0027, "medicine": -0.0029, "general": 0.0004}
    # Errors of a change are 0.0011, 0.0012, 0.0013, 0.0014 and 0.0015.
    run.write_evaluation(60, {domain: base[domain] + change for domain, change in changes.items()})
    run.write_summary()
    page, plots = report_of(run)
    kinds = re.findall(r'<td class="(\w+)">([-+.0-9]+)<small> \u00b1([0-9.]+)</small></td>', page)
    assert kinds == [
        ("same", "+0.002", "0.001"),
        ("same", "-0.002", "0.001"),
        ("worse", "+0.003", "0.001"),
        ("better", "-0.003", "0.001"),
        ("same", "+0.000", "0.002"),
    ]
    (heatmap,) = plots["Gained and forgotten"]["data"]
    assert [row[-1] for row in heatmap["text"]] == ["(+0.00)", "(-0.00)", "+0.00", "-0.00", "(+0.00)"]
    assert heatmap["customdata"][2][-1] == ["law", "+0.003 \u00b10.001"]
    change = sum(changes.values()) / 5
    error = math.sqrt(sum((0.0011 + 0.0001 * d) ** 2 for d in range(5))) / 5
    assert f"({change:+.3f} \u00b1{error:.3f})" in page


@pytest.mark.parametrize("forgotten_nats", [0.0, 3.0])
def test_forgetting_is_loss_minus_base_with_colours_centred_at_zero(
    fake_run: MakeFakeRun, forgotten_nats: float
) -> None:
    run = fake_run(total_steps=60, every=20)
    run.write_evaluation(60, run.losses[60] | {"law": run.losses[60]["law"] + forgotten_nats})
    _, plots = report_of(run)
    plot = plots["Gained and forgotten"]
    (heatmap,) = plot["data"]
    expected = [[run.losses[s][d] - run.losses[0][d] for s in (0, 20, 40, 60)] for d in run.domains]
    np.testing.assert_allclose(heatmap["z"], expected, atol=1e-12)
    assert heatmap["zmin"] == -heatmap["zmax"] == -np.abs(expected).max()
    assert plot["layout"]["yaxis"]["ticktext"] == run.domains


def test_epochs_inner_values_and_training_lines(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=60, every=20)
    _, plots = report_of(run)
    lines = metric_lines(run)
    epochs = {trace["name"]: trace["y"] for trace in plots["Epochs"]["data"]}
    assert epochs == {domain: [line["epochs"][domain] for line in lines] for domain in run.domains}
    mixing = [json.loads(line) for line in (run.path / "mixing.jsonl").read_text().splitlines()]
    for quantity in ("gamma", "phi"):
        values = {trace["name"]: trace["y"] for trace in plots[f"Inside the algorithm {quantity}"]["data"]}
        assert values == {d: [line["values"][f"{quantity}/{d}"] for line in mixing] for d in run.domains}
    (temperature,) = plots["Inside the algorithm temperature"]["data"]
    assert temperature["y"] == [line["values"]["temperature"] for line in mixing]
    for title, key in (("Learning rate", "learning_rate"), ("Gradient norm", "grad_norm")):
        assert plots[f"Training {title}"]["data"][0]["y"] == [line[key] for line in lines]


def test_the_soft_mask_is_shown_by_importance(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=20, every=20)
    assert "Soft mask" not in report_of(run)[0]
    # No weight has an importance from 0.5, and what is seen first need not be the least important.
    for step, updates in (
        (21, {"0.9": 1e-5, "0.5": None}),
        (22, {"0.0": 4e-4, "0.5": None, "0.9": 3e-5}),
        (23, {"0.0": 2e-4}),
    ):
        run.append("metrics.jsonl", {"step": step, "mask": {"mean_update": updates}})
    plot = report_of(run)[1]["Soft mask"]
    (bars,) = plot["data"]
    assert (bars["x"], bars["y"]) == (["from 0.0", "from 0.9"], pytest.approx([3e-4, 2e-5]))
    assert bars["type"] == "bar" and plot["layout"]["xaxis"]["type"] == "category"


def test_one_colour_per_domain_everywhere(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, every=20)
    page, plots = report_of(run)
    colors = color_by_name(run.domains)
    assert len(set(colors.values())) == len(run.domains)
    grouped = [trace for plot in plots.values() for trace in plot["data"] if trace.get("legendgroup")]
    assert len(grouped) > 4 * len(run.domains)
    assert {trace["legendgroup"]: trace["line"]["color"] for trace in grouped} == colors
    assert all(trace["line"]["color"] == colors[trace["legendgroup"]] for trace in grouped)
    for domain, color in colors.items():
        assert f'data-domain="{domain}"><i style="background: {color}"></i>{domain}' in page
    assert len(set(color_by_name([str(index) for index in range(24)]).values())) == 24


def test_the_table_tells_start_best_end_and_change(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, every=20)
    page, _ = report_of(run)
    summary = json.loads((run.path / "summary.json").read_text())
    for domain, result in summary["domains"].items():
        row = next(r for r in re.findall(r"<tr>.*?</tr>", page, re.DOTALL) if f"</i>{domain}</th>" in r)
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        start, best, end = (result[f"loss_nats_{key}"] for key in ("start", "best", "end"))
        error = 0.011 + 0.001 * run.domains.index(domain)
        told = f"<small> \u00b1{error:.3f}</small>"
        losses = [f"{start:.3f}{told}", f"{best:.3f}", f"{end:.3f}{told}"]
        change = f"{end - start:+.3f}<small> \u00b1{error / 10:.3f}</small>"
        assert cells[-5:] == [f"{result['epochs']:.2f}", *losses, change]
        assert ('class="worse"' in row) == (end > start)
    for fact in ("327,680", "5,120", "1 min 04 s", "versatune on Qwen/Qwen2.5-0.5B"):
        assert fact in page


def test_every_plot_of_losses_says_what_a_loss_is(fake_run: MakeFakeRun) -> None:
    run, other = fake_run(total_steps=20), fake_run("other", total_steps=20)
    for page in (report_of(run)[0], report_of(run, other)[0]):
        note = page[page.index("<h2>Loss per domain</h2>") :]
        note = note[note.index('class="note"') :].split("</p>")[0]
        assert all(words in note for words in ("Nats per loss token", "held-out rows", "only assistant tokens"))


def test_hostile_names_are_text(fake_run: MakeFakeRun) -> None:
    hostile = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</script><b>{{ 7*7 }}", "plain")
    run = fake_run(domains=hostile, total_steps=20, every=10)
    run.append("events.jsonl", {"step": 3, "kind": "<i>", "message": "<script>alert(3)</script>"})
    page, plots = report_of(run)
    text = (run.path / "report.html").read_text().replace(get_plotlyjs(), "")
    assert len(re.findall(r"<script", page)) == 0 and "<img" not in page and "<b>{" not in page and "49" not in plots
    data = text[text.index('id="figures">') + len('id="figures">') :].split("</script>")[0]
    assert json.loads(data) and "<" not in data and ">" not in data
    # What plotly would take for a tag or a link stands as an entity in every string that it is given.
    shown = [trace[key] for plot in plots.values() for trace in plot["data"] for key in ("name",) if key in trace]
    shown += plots["Gained and forgotten"]["layout"]["yaxis"]["ticktext"]
    assert not any("<" in name for name in shown) and any("&lt;script&gt;" in name for name in shown)


def test_nothing_but_its_own_scripts_can_run_or_load(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=20)
    report_of(run)
    text = (run.path / "report.html").read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', text)[1])  # type: ignore[index]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    assert policy.startswith(f"default-src 'none'; script-src {hashes}; style-src")
    assert "eval" not in policy and "http" not in policy
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", text.replace(scripts[0], ""))


def test_half_a_run(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=100, num_steps=50, every=20)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 51, "loss_na')
    page, plots = report_of(run)
    assert "not finished: step 50 of 100" in page
    assert plots["Training Learning rate"]["data"][0]["x"] == list(range(1, 51))
    assert f"{run.losses[40]['law']:.3f}" in page
    assert f"{50 * 8192:,}" in page


@pytest.mark.parametrize("total_steps", [0, 1])
def test_no_step_and_a_single_step(fake_run: MakeFakeRun, total_steps: int) -> None:
    run = fake_run(total_steps=5, num_steps=0) if total_steps == 0 else fake_run(total_steps=1, every=1)
    _, plots = report_of(run)
    assert plots["Shares over time"]["data"][0]["x"] == [0, 1]
    assert ("Epochs" in plots) == (total_steps == 1)
    modes = {trace["mode"] for title, plot in plots.items() if title.startswith("Training") for trace in plot["data"]}
    assert modes <= {"lines+markers"}, "a single point is invisible without a marker"


def test_only_a_configuration(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=5, num_steps=0)
    for path in [*run.path.glob("weights/*"), *run.path.glob("feedback/*"), run.path / "mixing.jsonl"]:
        path.unlink()
    _, plots = report_of(run)
    assert plots == {}


def test_losses_that_are_no_number_leave_gaps(fake_run: MakeFakeRun) -> None:
    run = fake_run(domains=("math", "code"), total_steps=40, num_steps=20, every=20)
    run.write_evaluation(30, {"math": math.nan, "code": math.inf})
    run.write_evaluation(40, {"math": 1.25})
    run.append("metrics.jsonl", {"step": 21, "loss_nats": "NaN", "num_tokens": 8192, "tokens_per_second": 5000.0})
    page, plots = report_of(run)
    assert plots["Loss per domain math"]["data"][1]["y"][2:] == [None, 1.25]
    assert plots["Loss per domain code"]["data"][1]["y"][2:] == [None, None]
    assert plots["Training Training loss, nats per loss token"]["data"][0]["y"][-1] is None
    assert "nan" not in page.lower().replace("finance", "")


def test_long_runs_are_thinned_by_means_over_bins() -> None:
    steps = np.arange(1, 100_001)
    values = np.where(steps <= 50_000, 1.0, 3.0)
    values[::7] = np.nan
    x, y = Thinning().means(steps, values)
    assert len(x) == len(y) == MAX_POINTS
    assert set(y) == {1.0, 3.0}
    assert x[0] == 25.5 and x[-1] == 99_975.5
    values[:50] = np.inf
    assert Thinning().means(steps, values)[1][0] is None


def test_a_hundred_thousand_lines_take_seconds(fake_run: MakeFakeRun) -> None:
    run = fake_run(domains=("math", "code", "law"), total_steps=100_000, num_steps=20, every=20)
    line = run.metric_line(0)
    del line["step"]
    rest = json.dumps(line)[1:]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {step}, {rest}\n' for step in range(21, 100_001))
    started = time.monotonic()
    _, plots = report_of(run)
    assert time.monotonic() - started < 15.0  # about 2 s on an idle core
    assert max(len(trace["x"]) for plot in plots.values() for trace in plot["data"]) <= MAX_POINTS
    assert (run.path / "report.html").stat().st_size < 8e6


def comparison_cells(page: str) -> dict[str, dict[str, str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    headings = re.findall(r"<th>(.*?)</th>", rows[0])
    table = {}
    for row in rows[1:]:
        cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL)
        table[re.sub(r"<.*?>", "", cells[0])] = dict(zip(headings[1:], cells[1:], strict=True))
    return table


def test_comparison_marks_the_best_of_each_column(fake_run: MakeFakeRun) -> None:
    runs = [fake_run(name, total_steps=40, every=20, seed=seed) for seed, name in enumerate(("a", "b"))]
    half = fake_run("half", total_steps=40, num_steps=20, every=20, seed=2)
    page, plots = report_of(*runs, half)
    table = comparison_cells(page)
    ends = {"a": runs[0].losses[40], "b": runs[1].losses[40], "half": half.losses[20]}
    for domain in half.domains:
        best = min(ends, key=lambda name: ends[name][domain])
        for name, losses in ends.items():
            text, error = f"{losses[domain]:.3f}", 0.011 + 0.001 * half.domains.index(domain)
            told = f"<small> \u00b1{error:.3f}</small>"
            assert table[name][f"{domain} end"] == (f"<strong>{text}</strong>" if name == best else text) + told
    assert f"{np.mean(list(half.losses[20].values())):.3f}" in table["half"]["mean end"]
    assert f"{max(half.losses[20].values()):.3f}" in table["half"]["worst end"]
    assert table["half"]["steps"] == "20 of 40" and table["a"]["tokens"] == "327,680"
    overlay = {trace["name"]: trace["y"] for trace in plots["Loss per domain law"]["data"]}
    assert overlay["half"] == pytest.approx([half.losses[step]["law"] for step in (0, 20)])
    assert list(overlay) == ["a", "b", "half"]
    assert len([title for title in plots if title.startswith("Shares")]) == 3


def test_comparison_of_runs_with_other_domains_and_the_same_name(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    one = fake_run("same", domains=("math", "code"), total_steps=20)
    (tmp_path / "elsewhere").mkdir()
    other = fake_run("elsewhere/same", domains=("code", "law"), total_steps=20)
    page, plots = report_of(one, other)
    table = comparison_cells(page)
    assert len(table) == 2 and all(str(run.path) in " ".join(table) for run in (one, other))
    shown = html.unescape(page)
    assert "mean and worst are over the run's domains" in shown and "Benchmarks: the result" not in shown
    assert [table[name]["math end"] for name in table][1] == "-"
    colors = {trace["name"]: trace["line"]["color"] for trace in plots[f"Shares over time same ({other.path})"]["data"]}
    assert colors["code"] == color_by_name(["math", "code", "law"])["code"]


def test_comparison_for_the_terminal(fake_run: MakeFakeRun) -> None:
    runs = [fake_run(name, total_steps=40, every=20, seed=seed) for seed, name in enumerate(("a", "b"))]
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table([run.path for run in runs]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    row = next(line for line in text.splitlines() if "law end" in line)
    assert row.split()[2::2] == [f"{run.losses[40]['law']:.3f}" for run in runs]
    assert row.split()[3::2] == ["\u00b10.013"] * 2
    assert max(map(len, text.splitlines())) <= 80
    assert "In brackets" not in text  # what single examples lost is not known


def losses_of(rng: np.random.Generator, tokens: Any, first: int = 0) -> ExampleLosses:
    """Of made-up examples, numbered from `first` on."""
    numbers = np.arange(first, first + len(tokens)).astype(np.uint64)
    return ExampleLosses(numbers, tokens * rng.gamma(4.0, 0.4, len(tokens)), np.asarray(tokens), num_held_out=500)


def test_runs_are_compared_over_the_examples_that_both_measured(fake_run: MakeFakeRun) -> None:
    """In the table, for a terminal and on the page, and in the plot."""
    runs = [fake_run(name, domains=("math", "law"), total_steps=40, every=20) for name in ("a", "b", "older")]
    rng, written = np.random.default_rng(0), []
    tokens = {"math": rng.integers(1, 90, 60), "law": rng.integers(1, 200, 70)}
    for number, run in enumerate(runs[:2]):
        written.append({name: losses_of(rng, counts, first=10 * number) for name, counts in tokens.items()})
        run.write_example_losses(40, written[-1])
        (run.path / "summary.json").unlink()
    page, plots = report_of(*runs)
    expected = {}
    for name in tokens:
        ours, theirs = written[1][name], written[0][name]  # examples 10 to the last of the first run's
        numerator = ours.loss_sum_nats_E[:-10] - theirs.loss_sum_nats_E[10:]
        shared = ours.num_tokens_E[:-10]
        nats, count = numerator.sum() / shared.sum(), len(shared)
        moved = (numerator - nats * shared) / (shared.sum() - shared)
        expected[name] = (nats, math.sqrt((count - 1) / count * (moved**2).sum()))
    expected["mean"] = tuple(
        combine([expected[name][i] for name in tokens]) / 2 for i, combine in ((0, sum), (1, lambda e: math.hypot(*e)))
    )
    table = comparison_cells(page)
    for name, (nats, error) in expected.items():
        assert f"({nats:+.3f} \u00b1{error:.3f})" in table["b"][f"{name} end"]
        assert "(" not in table["a"][f"{name} end"] and "(" not in table["older"][f"{name} end"]
    assert "In brackets: minus a, paired" in page
    (points, _) = plots["Differences from a"]["data"]
    assert points["name"] == "b"
    assert points["x"] == pytest.approx([expected[name][0] for name in ("mean", "math", "law")])
    assert points["error_x"]["array"] == pytest.approx([2 * expected[name][1] for name in ("mean", "math", "law")])
    console = Console(file=io.StringIO(), width=160)
    console.print(comparison_table([run.path for run in runs]))
    assert isinstance(console.file, io.StringIO)
    nats, error = expected["law"]
    assert f"({nats:+.3f} \u00b1{error:.3f})" in console.file.getvalue()


def test_a_damaged_file_of_losses_costs_the_comparison_and_nothing_else(fake_run: MakeFakeRun) -> None:
    runs = [fake_run(name, domains=("math", "law"), total_steps=40, every=20) for name in ("a", "b")]
    for run in runs:
        run.write_example_losses(
            40, {name: losses_of(np.random.default_rng(1), np.full(20, 9)) for name in run.domains}
        )
    (runs[1].path / "evaluations" / "00000040.npz").write_bytes(b"half of it")
    page, plots = report_of(*runs)
    assert "In brackets" not in page and not any(title.startswith("Differences") for title in plots)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing-here is not the folder of a run"):
        write_report([tmp_path / "nothing-here"], tmp_path / "report.html")
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_without_an_evaluation_of_the_base_model_there_is_no_base_line(fake_run: MakeFakeRun) -> None:
    written = fake_run("late", domains=("math", "law"), total_steps=40, num_steps=20, every=10)
    (written.path / "feedback" / "00000000.json").unlink()
    run = RunFolder(written.path)
    run.refresh()
    assert np.isnan(list(base_losses(run).values())).all() and len(run.feedback) == 2
    written.write_evaluation(0, {"math": math.inf, "law": 2.0})
    run.refresh()
    assert math.isnan(base_losses(run)["math"]) and base_losses(run)["law"] == 2.0
