"""report.html: a single file with scripts and data inside; its content security policy allows nothing else."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.loss_errors import RunErrors, run_errors
from orchestrator.runs.records import LossCourse, RunSummary
from orchestrator.runs.summary import summarise
from orchestrator.views.format import (
    color_by_name,
    format_change,
    format_count,
    format_duration,
    format_loss,
)
from orchestrator.views.report.benchmarks import benchmark_sections
from orchestrator.views.report.comparison import all_domains, comparison_sections, load_runs, runs_table
from orchestrator.views.report.figures import Section, figures_json
from orchestrator.views.report.run_figures import run_sections
from orchestrator.views.summary import HARMFUL, domain_table, verdict_lines
from orchestrator.views.table import ResultTable, environment
from workers.clock import parse_time
from workers.contracts import Change
from workers.storage.mirror import publish

MAX_EVENTS_SHOWN = 100


def write_report(run_folders: Sequence[Path], output: Path) -> None:
    if not run_folders:
        raise ValueError("a report needs at least one run folder")
    runs = load_runs(run_folders)
    if len(runs) == 1:
        (run,) = runs
        write_page(output, render_page("run.html", run_sections(run), title=run.name, **run_values(run)))
    else:
        sections = [*benchmark_sections(runs), *comparison_sections(runs)]
        write_table_page(output, f"{len(runs)} runs compared", runs_table(runs), sections, all_domains(runs))


def write_table_page(
    output: Path, title: str, table: ResultTable, sections: Sequence[Section], domains: Sequence[str] = ()
) -> None:
    """Write a page with a table and its plots; the reader can hide each of `domains` in all plots."""
    values = {"title": title, "table": table, "domain_colors": color_by_name(domains)}
    write_page(output, render_page("comparison.html", sections, table.caveats, **values))


def write_page(output: Path, page: str) -> None:
    """Replace the page atomically, so that a browser never loads half of one."""
    temporary = output.with_name(f".{output.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(output)
    publish(output)


def run_values(run: RunFolder) -> dict[str, Any]:
    """What the page of a run shows besides its plots, in the report and in the dashboard."""
    result, errors = summarise(run), run_errors(run)
    kind = "bad" if result.verdict in HARMFUL else "good" if result.verdict == "improved" else "mixed"
    return {
        "run": run,
        "model": run.setting("model", "path") or "-",
        "result": result,
        "verdict": {"kind": kind, "lines": verdict_lines(run, result)},
        "facts": _facts(result, errors),
        "table": domain_table(run, result, errors),
        "domain_colors": color_by_name(run.domains),
        "events": run.events[-MAX_EVENTS_SHOWN:],
        "num_events": len(run.events),
        "num_unreadable_lines": run.num_unreadable_lines,
        "problems": run.problems,
    }


def _facts(result: RunSummary, errors: RunErrors) -> dict[str, str]:
    """The numbers at the top of a run's page; times are missing for runs of older versions."""
    facts = {
        "Steps": f"{result.steps:,}",
        "Tokens": f"{result.num_tokens:,}",
        "Tokens per second": format_count(result.tokens_per_second),
        "Training time": format_duration(result.seconds),
        "Weights versions": f"{result.weights_versions:,}",
        "Mean loss": _course(result.mean_loss_nats, errors.mean.change),
        "Worst loss": _course(result.worst_loss_nats),
    }
    if result.started_at is not None and result.ended_at is not None:
        began, ended = parse_time(result.started_at), parse_time(result.ended_at)
        facts["Began"] = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M UTC")
        facts["Wall time"] = format_duration(ended - began)
    if result.best is not None:
        facts["Best at step"] = f"{result.best.step:,}" + ("" if result.best.step else " (base)")
    return facts


def _course(loss: LossCourse, change: Change | None = None) -> str:
    told = f" ({format_change(change)})" if change else ""
    return f"{format_loss(loss.start)} \u2192 {format_loss(loss.end)}{told}"


def render_page(template: str, sections: Sequence[Section], caveats: Sequence[str] = (), **values: Any) -> str:
    """A page of plots: a template of this package with sections and values; `caveats` are shown below the plots."""
    # Browsers normalise line ends to \n before they hash a script.
    sources = (get_plotlyjs(), asset("plots.js") + asset("page.js"))
    get_template = environment("orchestrator.views.report").get_template
    scripts = [text.replace("\r\n", "\n").replace("</script", "<\\/script") for text in sources]
    return get_template(template).render(
        sections=sections,
        caveats=caveats,
        figures=Markup(_figures_json(sections)),
        style=Markup(asset("page.css")),
        scripts=[Markup(text) for text in scripts],
        policy=_content_security_policy(scripts),
        **values,
    )


def asset(name: str) -> str:
    return resources.files("orchestrator.views.report").joinpath("templates", name).read_text(encoding="utf-8")


def _figures_json(sections: Sequence[Section]) -> str:
    """The data of all plots in page order, as text that cannot close the element that contains it."""
    text = json.dumps(figures_json(sections), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _content_security_policy(scripts: Sequence[str]) -> str:
    """Only these scripts may run, nothing is loaded or sent; plotly styles its elements inline."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
