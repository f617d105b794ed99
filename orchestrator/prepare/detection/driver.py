"""`raymix detect`, and replacing `detected` in a configuration by shares before its run starts.

A distribution is shown as a table in the terminal, and as a page with plots and texts.
"""

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console, Group, RenderableType
from rich.text import Text

from orchestrator.cluster.session import check_resources, ray_session
from orchestrator.config.run import RunConfig
from orchestrator.mixing.needs import DISTRIBUTION, Measured, Numbers, Source
from orchestrator.prepare.detection.quantification import DetectedDistribution, EstimatedShares
from orchestrator.prepare.detection.rounds import find_distribution, known_distribution
from orchestrator.views.console import redirect_output
from orchestrator.views.format import PLUS_MINUS, color_by_name, format_share
from orchestrator.views.report.figures import NEUTRAL, Plot, Section, label, layout, matrix_figure, name_every_category
from orchestrator.views.report.html import render_page
from orchestrator.views.table import Cell, Column, ResultTable, Row
from workers.durable import write_durably

_TITLES = {"average": "plain average", "counts": "hard counts", "corrected": "corrected"}


def detect(config: RunConfig, output: Path, console: Console) -> None:
    """Detect the distribution of the configuration's model, or read it if it was detected before.

    Writes `output` and, next to it, a page with the suffix .html.
    """
    distribution = known_distribution(config)
    if distribution is None:
        with redirect_output(config.output_dir / "detection" / "raymix.log") as quiet_console:
            quiet_console.print(f"detection: starting Ray ({config.cluster.address})", markup=False)
            with ray_session(config.cluster):
                check_resources(config.cluster)
                distribution = find_distribution(config, quiet_console)
    page = output.with_suffix(".html")
    _keep(distribution, output, page)
    console.print(distribution_view(distribution))
    console.print(f"distribution: {output}, page: {page}", highlight=False, markup=False)


def with_detected_shares(config: RunConfig, console: Console) -> RunConfig:
    """The configuration with shares by domain if its mixing has `detected` or a file of shares.

    The distribution is kept as distribution.json in the run's folder, which a resumed run uses. To be called inside a
    Ray session.
    """
    source = config.mixing.needs.distribution
    if source is None:
        return config
    kept = config.folder / "distribution.json"
    if not kept.exists():
        config.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            write_durably(kept, source.read_bytes())
        else:
            console.print("initial shares: detecting what the base model knows")
            _keep(find_distribution(config, console), kept, config.folder / "distribution.html")
    return _with_shares(config, source, DISTRIBUTION.read(kept))


def with_known_shares(config: RunConfig) -> RunConfig | None:
    """The same without detecting or writing anything; None if the shares have not been detected yet."""
    source = config.mixing.needs.distribution
    if source is None:
        return config
    if isinstance(source, Path):
        return _with_shares(config, source, DISTRIBUTION.read(source))
    known = known_distribution(config)
    return None if known is None else _with_shares(config, source, known.shares)


def _with_shares(config: RunConfig, source: Source, shares: Numbers) -> RunConfig:
    by_domain = {name: shares[name] for name in config.trained_domains}
    return config.replaced(mixing=config.mixing.with_measured(Measured(distributions={source: by_domain})))


def _keep(distribution: DetectedDistribution, path: Path, page: Path) -> None:
    write_page(distribution, page)
    distribution.write(path)  # last: it marks the rest as complete


def table(distribution: DetectedDistribution) -> ResultTable:
    """The estimates side by side, with their intervals on a page and half their widths in the terminal."""
    columns = [
        Column(_TITLES[name], [_estimate(estimate, domain) for domain in distribution.domains])
        for name, estimate in distribution.estimates.items()
    ]
    shares = [Cell(format_share(distribution.shares.get(domain))) for domain in distribution.domains]
    return ResultTable(
        "Domain",
        [Row(name, color=color) for name, color in color_by_name(distribution.domains).items()],
        [*columns, Column("Share", shares)],
        explanation=f"In brackets: {distribution.confidence:.0%} intervals; those of the plain average and of the hard "
        f"counts do not include the judge's errors. Share: {_TITLES[distribution.estimate]}, smoothed, over the "
        "trained domains.",
    )


def _estimate(estimate: EstimatedShares, domain: str) -> Cell:
    share, (low, high) = format_share(estimate.shares[domain]), estimate.intervals[domain]
    brief = f"{share} {PLUS_MINUS} {format_share((high - low) / 2)}"
    return Cell(share, f" ({format_share(low)} to {format_share(high)})", brief=brief)


def distribution_view(distribution: DetectedDistribution) -> RenderableType:
    rounds = distribution.rounds
    end = "converged" if distribution.is_converged else "stopped at max_texts"
    unparsed = f", {distribution.num_unparsed:,} of them unparsed" if distribution.num_unparsed else ""
    judge = distribution.judge
    cost = f", {judge['cost_usd']:.2f} USD" if judge.get("cost_usd") else ""
    facts = (
        f"{distribution.num_texts:,} texts{unparsed}, {len(rounds)} round{'s' if len(rounds) > 1 else ''}, {end}; "
        f"judge: {judge['type']}{cost}; share: {_TITLES[distribution.estimate]}, smoothed; "
        f"{PLUS_MINUS} half the {distribution.confidence:.0%} interval"
    )
    return Group(table(distribution).to_rich(), Text(facts, style="dim"))


def write_page(distribution: DetectedDistribution, path: Path) -> None:
    """Write the page, one file that needs no network."""
    judge = distribution.judge
    facts = {
        "Texts": f"{distribution.num_texts:,}",
        "Unparsed": f"{distribution.num_unparsed:,}",
        "Rounds": f"{len(distribution.rounds)}",
        "Calibration texts": f"{sum(distribution.num_calibration_texts.values()):,}",
        "Judge": str(judge["type"]),
    }
    facts |= {"Cost": f"{judge['cost_usd']:.2f} USD"} if judge.get("cost_usd") else {}
    page = render_page(
        "detection.html",
        _sections(distribution),
        title="Knowledge distribution",
        distribution=distribution,
        table=table(distribution),
        facts=facts,
        domain_colors=color_by_name(distribution.domains),
    )
    write_durably(path, page.encode("utf-8", "replace"))


def _sections(distribution: DetectedDistribution) -> list[Section]:
    sections = [
        Section(
            "Estimates",
            "Bars: the estimate that the shares are based on, with its interval. Marks: the other estimates.",
            [Plot("", _estimates_figure(distribution))],
            is_wide=True,
        ),
        Section(
            "Rounds", "The estimate over all texts so far.", [Plot("", _rounds_figure(distribution))], is_wide=True
        ),
    ]
    if distribution.responses:
        note = "Mean answer of the judge about the model's continuations of openings of each domain."
        rows = [
            [distribution.responses[row][column] for column in distribution.domains] for row in distribution.domains
        ]
        figure = matrix_figure(rows, distribution.domains, 1.0, "judged as")
        sections.append(Section("The judge", note, [Plot("", figure)], is_wide=True))
    return sections


def _estimates_figure(distribution: DetectedDistribution) -> go.Figure:
    colors = color_by_name(distribution.domains)
    figure = go.Figure(layout=layout(300, yaxis={"tickformat": ".0%", "hoverformat": ".1%", "rangemode": "tozero"}))
    figure.update_layout(showlegend=True, bargap=0.6)
    name_every_category(figure)
    names = [label(domain) for domain in distribution.domains]
    chosen = distribution.estimates[distribution.estimate]
    shares = [chosen.shares[domain] for domain in distribution.domains]
    ends = [chosen.intervals[domain] for domain in distribution.domains]
    bars = go.Bar(
        x=names,
        y=shares,
        name=_TITLES[distribution.estimate],
        marker={"color": [colors[domain] for domain in distribution.domains]},
        error_y={
            "array": [max(upper - share, 0.0) for (_, upper), share in zip(ends, shares, strict=True)],
            "arrayminus": [max(share - lower, 0.0) for (lower, _), share in zip(ends, shares, strict=True)],
            "color": NEUTRAL,
            "thickness": 1.2,
        },
    )
    figure.add_trace(bars)
    symbols = iter(("circle-open", "diamond-open"))
    for name, estimate in distribution.estimates.items():
        if name != distribution.estimate:
            marker = {"symbol": next(symbols), "size": 9, "color": NEUTRAL, "line": {"width": 1.5}}
            y = [estimate.shares[domain] for domain in distribution.domains]
            figure.add_trace(go.Scatter(x=names, y=y, mode="markers", name=_TITLES[name], marker=marker))
    return figure


def _rounds_figure(distribution: DetectedDistribution) -> go.Figure:
    figure = go.Figure(layout=layout(240, yaxis={"tickformat": ".0%", "hoverformat": ".1%", "rangemode": "tozero"}))
    x = [done.num_texts for done in distribution.rounds]
    for domain, color in color_by_name(distribution.domains).items():
        y = [done.shares[domain] for done in distribution.rounds]
        style = {"mode": "lines+markers", "line": {"color": color, "width": 1.8}, "marker": {"size": 5}}
        figure.add_trace(go.Scatter(x=x, y=y, name=label(domain), legendgroup=domain, **style))
    return figure
