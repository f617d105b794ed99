"""Paired differences between the final losses of runs and those of the first run, by domain, and their plot."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.loss_errors import differences, mean_difference, read_last_losses
from orchestrator.views.format import format_change
from orchestrator.views.report.figures import NEUTRAL, Plot, Point, Section, dotted, points_figure
from orchestrator.views.report.series import label
from workers.contracts import Change
from workers.validation.loss_statistics import CLEAR

_MEAN = "mean of the domains"


def pair_with_first(runs: Sequence[RunFolder]) -> list[dict[str, Change]]:
    """By run and domain: final loss minus the first run's, over the examples that both measured.

    Empty for the first run, for runs of older versions, and if no example was measured by both.
    """
    first, *others = [read_last_losses(run) for run in runs]
    return [{}, *(differences(losses, first) for losses in others)]


def mean_pairs(runs: Sequence[RunFolder], pairs: Sequence[dict[str, Change]]) -> list[Change | None]:
    """The same for the mean over the domains; None for a run whose domains differ from the first run's."""
    names = runs[0].domains
    are_alike = [set(run.domains) == set(names) for run in runs]
    return [mean_difference(pair, names) if is_alike else None for pair, is_alike in zip(pairs, are_alike, strict=True)]


def difference_sections(runs: Sequence[RunFolder], colors: Mapping[str, str], domains: Sequence[str]) -> list[Section]:
    """A line for each domain and for their mean, with a point for each run but the first; none without differences."""
    pairs, labels = pair_with_first(runs), list(colors)
    if not any(pairs):
        return []
    rows = {_MEAN: mean_pairs(runs, pairs)} | {domain: [pair.get(domain) for pair in pairs] for domain in domains}
    note = (
        f"Final held-out loss minus that of {labels[0]}, in nats per loss token, paired over the examples that "
        "both measured; bars are two standard errors to each side. Left of the line is better."
    )
    legend = {name: colors[name] for name in labels[1:]}
    return [Section(f"Differences from {labels[0]}", note, [Plot("", _figure(rows, legend))], True, legend=legend)]


def _figure(rows: Mapping[str, Sequence[Change | None]], colors: Mapping[str, str]) -> go.Figure:
    points = {
        name: {
            place: Point(change.nats, CLEAR * change.standard_error, [label(row), format_change(change)])
            for place, (row, of_run) in enumerate(rows.items())
            if (change := of_run[index + 1]) is not None
        }
        for index, name in enumerate(colors)
    }
    names = [label(row) for row in rows]
    figure = points_figure(names, points, colors, "%{customdata[0]}: %{customdata[1]}", row_pixels=34)
    figure.update_xaxes(rangemode="normal", tickformat="+.3~f", hoverformat="+.3f")
    zero = dotted(NEUTRAL, xref="x", yref="y domain", x0=0, x1=0, y0=0, y1=1)
    figure.update_layout(shapes=[zero])
    return figure
