"""report.html: one file that needs no network. Script and data lie inside it, and its policy lets nothing else in."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.loss_errors import RunErrors, change_nats_text, error_text, run_errors, verdict
from orchestrator.runs.records import RunSummary
from orchestrator.runs.summary import summarise
from orchestrator.views.palette import color_by_name
from orchestrator.views.report.benchmarks import benchmark_sections
from orchestrator.views.report.comparison import (
    all_domains,
    compare,
    comparison_sections,
    error_note,
    load_runs,
    run_colors,
)
from orchestrator.views.report.data import data_sections
from orchestrator.views.report.figures import Section
from orchestrator.views.report.run_figures import run_sections
from orchestrator.views.report.series import figure_json
from orchestrator.views.terminal import format_duration, format_loss, format_share
from orchestrator.views.verdict import HARMFUL, verdict_lines
from workers.clock import parse_time

MAX_EVENTS_SHOWN = 100


def write_report(run_folders: Sequence[Path], output: Path) -> None:
    """Write the report of one run, or the comparison of several, to `output`."""
    if not run_folders:
        raise ValueError("a report needs at least one run folder")
    runs = load_runs(run_folders)
    write_page(output, _run_page(runs[0]) if len(runs) == 1 else _comparison_page(runs))


def write_page(output: Path, page: str) -> None:
    """Put a page in its place at once, so that a browser never loads half of one."""
    temporary = output.with_name(f".{output.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(output)


def _run_page(run: RunFolder) -> str:
    result, errors = summarise(run), run_errors(run)
    return render_page(
        "run.html",
        [*benchmark_sections([run]), *run_sections(run), *data_sections(run)],
        title=run.name,
        run=run,
        model=run.setting("model", "path") or "-",
        result=result,
        verdict=shown_verdict(run, result),
        facts=_facts(result, errors),
        loss_errors=errors,
        domain_colors=color_by_name(run.domains),
        events=run.events[-MAX_EVENTS_SHOWN:],
        num_events=len(run.events),
        num_unreadable_lines=run.num_unreadable_lines,
    )


def _comparison_page(runs: Sequence[RunFolder]) -> str:
    return render_page(
        "comparison.html",
        [*benchmark_sections(runs), *comparison_sections(runs)],
        title=f"{len(runs)} runs compared",
        comparison=compare(runs),
        run_colors=run_colors(runs),
        domain_colors=color_by_name(all_domains(runs)),
    )


def _facts(result: RunSummary, errors: RunErrors) -> dict[str, str]:
    facts = {
        "Steps": f"{result.steps:,}",
        "Tokens": f"{result.num_tokens:,}",
        "Tokens per second": f"{result.tokens_per_second:,.0f}" if math.isfinite(result.tokens_per_second) else "-",
        "Training time": format_duration(result.seconds),
        "Weights versions": f"{result.weights_versions:,}",
        "Mean loss": mean_loss_text(result, errors),
        "Worst loss": f"{format_loss(result.worst_loss_nats.start)} \u2192 {format_loss(result.worst_loss_nats.end)}",
    }
    return facts | run_times(result) | best_fact(result)


def run_times(result: RunSummary) -> dict[str, str]:
    """When the run began, and how long it took, all that came between its steps included; nothing in older files."""
    if result.started_at is None or result.ended_at is None:
        return {}
    began, ended = parse_time(result.started_at), parse_time(result.ended_at)
    shown = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"Began": shown, "Wall time": format_duration(ended - began)}


def best_fact(result: RunSummary) -> dict[str, str]:
    """The step of the best evaluation, where there is one."""
    if result.best is None:
        return {}
    return {"Best at step": f"{result.best.step:,}" + (" (base)" if result.best.step == 0 else "")}


def shown_verdict(run: RunFolder, result: RunSummary) -> dict[str, Any]:
    """What verdict.html shows: sentences, the verdict first, and how grave they are."""
    kind = "bad" if result.verdict in HARMFUL else "good" if result.verdict == "improved" else "mixed"
    return {"kind": kind, "lines": verdict_lines(run, result)}


def render_page(template: str, sections: Sequence[Section], caveats: Sequence[str] = (), **values: Any) -> str:
    """A page of plots: a template of this package, its sections, and the values that the template names.

    `caveats` are what a reader must know of a method, shown below its plots.
    """
    # A browser reads line ends as \n before it hashes a script.
    sources = (get_plotlyjs(), asset("plots.js") + asset("page.js"))
    scripts = [text.replace("\r\n", "\n").replace("</script", "<\\/script") for text in sources]
    return (
        environment("orchestrator.views.report")
        .get_template(template)
        .render(
            sections=sections,
            caveats=caveats,
            figures=Markup(_figures_json(sections)),
            style=Markup(asset("page.css")),
            scripts=[Markup(text) for text in scripts],
            policy=_content_security_policy(scripts),
            **values,
        )
    )


def environment(*packages: str) -> Environment:
    """Templates of these packages, the first that has one; whatever they show is text, never markup."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    made.filters |= {"loss": format_loss, "share": format_share, "change": _change, "error": error_text}
    made.filters["error_note"] = error_note
    return made


def asset(name: str) -> str:
    """A style sheet or a script that every page has."""
    return resources.files("orchestrator.views.report").joinpath("templates", name).read_text(encoding="utf-8")


def mean_loss_text(result: RunSummary, errors: RunErrors) -> str:
    """Mean loss of the domains at the start and at the end, and the error of what lies between."""
    mean = result.mean_loss_nats
    text = f"{format_loss(mean.start)} \u2192 {format_loss(mean.end)}"
    return text if errors.mean.change is None else f"{text} ({change_nats_text(errors.mean.change)})"


def _change(end: float | None, start: float | None, error: float | None = None) -> dict[str, str]:
    if end is None or start is None or not math.isfinite(end - start):
        return {"text": "-", "kind": "same"}
    return {"text": f"{end - start:+.3f}", "kind": verdict(end - start, error)}


def _figures_json(sections: Sequence[Section]) -> str:
    """The data of all plots in order of the page, as text that cannot end the element it stands in."""
    figures = [figure_json(plot.figure) for section in sections for plot in section.plots]
    text = json.dumps(figures, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _content_security_policy(scripts: Sequence[str]) -> str:
    """Only these very scripts run, nothing is loaded or sent; plotly styles its elements inline."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
