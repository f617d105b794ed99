"""The page of a plan: what each domain loses along all stages, then the stages side by side."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import plotly.graph_objects as go

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.summary import evaluation_losses
from orchestrator.sweeps.stages import CAVEATS
from orchestrator.views.format import color_by_name
from orchestrator.views.report.comparison import all_domains, comparison_sections, load_runs, runs_table
from orchestrator.views.report.figures import LOSS_NOTE, NEUTRAL, Plot, Section, gaps, layout, line
from orchestrator.views.report.html import write_table_page


def write_plan_page(output: Path, name: str, folders: Sequence[Path]) -> None:
    """Write the HTML page of a plan from the folders of its stages, in order."""
    stages = load_runs(folders)
    along = Section(
        "Along the plan",
        f"{LOSS_NOTE}, over the optimizer steps of all stages; a dotted line is where a stage begins.",
        [Plot("", along_figure(stages))],
        is_wide=True,
    )
    table = replace(runs_table(stages), caveats=CAVEATS)
    sections = [along, *comparison_sections(stages)]
    write_table_page(output, f"{name}, stage by stage", table, sections, all_domains(stages))


def along_figure(stages: Sequence[RunFolder]) -> go.Figure:
    """Each domain's held-out loss over the steps of the whole plan, a line broken where a stage ends."""
    figure = go.Figure(layout=layout(300, yaxis={"hoverformat": ".3f"}))
    measured = [evaluation_losses(stage) for stage in stages]
    begins = list(accumulate((stage.metrics.last_step for stage in stages), initial=0))
    for domain, color in color_by_name(all_domains(stages)).items():
        x: list[float] = []
        y: list[float | None] = []
        for begin, (steps, losses) in zip(begins, measured, strict=False):
            if domain in losses:
                x += [*(begin + steps).tolist(), float(begin + steps[-1])]
                y += [*gaps(losses[domain]), None]
        figure.add_trace(line(x, y, domain, color, domain))
    for begin in begins[1:-1]:
        figure.add_vline(x=begin, line={"color": NEUTRAL, "dash": "dot", "width": 1.2})
    return figure
