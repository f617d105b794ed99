"""What a search found: its table, and a page with the tree and with Spec against Vers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from orchestrator.sweeps.coarse.tree import Candidate, SearchResult, halves, pareto_set
from orchestrator.views.format import COLORS
from orchestrator.views.report.figures import NEUTRAL, Plot, Section, dots, label, layout, line
from orchestrator.views.report.html import write_table_page
from orchestrator.views.table import Cell, ResultTable, Row, columns_of

_TREE_ROW_HEIGHT = 46
_CAVEATS = (
    "The search is greedy: a range whose halves are good only together is lost.",
    "Scores of single trainings are noisy: differences smaller than the spread across seeds are not meaningful.",
)


def node_title(node: Candidate) -> str:
    first, last = (f"{100 * end:g}" for end in node.layers)
    return f"layers {first}-{last} %, {' + '.join(node.modules)}".replace("_", "-")


def table(result: SearchResult) -> ResultTable:
    """All nodes, best first, and which of them nothing is better than."""
    nodes = sorted(result.scores, key=result.uni, reverse=True)
    best = set(pareto_set(result.scores))
    rows: list[list[Cell | str]] = []
    for node in nodes:
        score = result.scores[node]
        numbers = (score.spec, score.vers, result.uni(node))
        rows.append([*(Cell(f"{each:.3f}", value=each) for each in numbers), "yes" if node in best else ""])
    return ResultTable(
        "Run",
        [Row(node_title(node), color=_color(result, node), is_best=node == result.winner) for node in nodes],
        columns_of(("Spec", "Vers", "Uni", "Pareto"), rows),
        explanation="Spec: gain of the speciality relative to full fine-tuning's. Vers: what is left of everything "
        f"else, relative to the base model. Uni = Spec + {result.versatility_weight:g} * Vers. Bold: the winner of the "
        "last step; a node of an earlier step may score higher, and you may prefer it.",
        caveats=_CAVEATS,
    )


def write_search_page(name: str, result: SearchResult, output: Path) -> None:
    """Write the page."""
    note = (
        f"{len(result.scores)} nodes trained; numbers are Uni, full points were kept, the star won. A node that "
        "several steps compare was trained once."
    )
    sections = [
        Section("Tree", note, [Plot("", tree_figure(result))], is_wide=True),
        Section(
            "Speciality against versatility",
            "A point for each node; the line joins those that no other node beats in both at once.",
            [Plot("", trade_off_figure(result))],
            is_wide=True,
        ),
    ]
    write_table_page(output, f"{name}: where to train", table(result), sections)


def tree_figure(result: SearchResult) -> go.Figure:
    """Root, then a column of nodes for each step; a line from what was kept to what it was split into."""
    height = _TREE_ROW_HEIGHT * max(len(step.nodes) for step in result.steps) + 60
    ticks = {"tickvals": [0, 1, 2, 3], "ticktext": ["base model", "broad ranges", "their halves", "sets of modules"]}
    axes = {
        "xaxis": ticks | {"range": [-0.2, 3.9], "rangemode": "normal", "showgrid": False},
        "yaxis": {"visible": False, "range": [1.02, -0.02]},
    }
    figure = go.Figure(layout=layout(height, **axes) | {"hovermode": "closest"})
    edge: dict[str, Any] = {"mode": "lines", "line": {"color": NEUTRAL, "width": 1}, "hoverinfo": "skip"}
    for start, end in _edges(result):
        figure.add_trace(line([start[0], end[0]], [start[1], end[1]], "", NEUTRAL, **edge))
    for number, step in enumerate(result.steps, start=1):
        for place, node in enumerate(step.nodes):
            figure.add_trace(_tree_point(result, node, number, _height(place, step.nodes), node in step.kept))
    return figure


def _tree_point(result: SearchResult, node: Candidate, number: int, height: float, is_kept: bool) -> go.Scatter:
    wins = number == len(result.steps) and node == result.winner
    symbol = "star" if wins else "circle" if is_kept else "circle-open"
    more: dict[str, Any] = {
        "mode": "markers+text",
        "marker": {"size": 15 if wins else 10, "color": _color(result, node), "symbol": symbol},
        "text": [f"{label(node_title(node).removeprefix('layers '))}  {result.uni(node):.3f}"],
        "textposition": "top right" if number < len(result.steps) else "middle right",
        "textfont": {"size": 10},
    }
    return line([number], [height], node_title(node), NEUTRAL, **more)


def _edges(result: SearchResult) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Lines of the tree as pairs of (step, height)."""
    first, second, _ = result.steps
    edges = [((0.0, 0.5), (1.0, _height(place, first.nodes))) for place in range(len(first.nodes))]
    for step, number, is_child in (
        (first, 1, lambda parent, node: node.layers in halves(parent.layers)),
        (second, 2, lambda parent, node: node.layers == parent.layers),
    ):
        children = result.steps[number].nodes
        for parent in step.kept:
            start = (float(number), _height(step.nodes.index(parent), step.nodes))
            edges += [
                (start, (number + 1.0, _height(place, children)))
                for place, node in enumerate(children)
                if is_child(parent, node)
            ]
    return edges


def _height(place: int, nodes: Sequence[Candidate]) -> float:
    return (place + 0.5) / len(nodes)


def trade_off_figure(result: SearchResult) -> go.Figure:
    """Vers over Spec, with the Pareto set joined."""
    axes = {
        "xaxis": {"title": {"text": "Spec"}, "rangemode": "normal", "tickformat": ".2f", "hoverformat": ".3f"},
        "yaxis": {"title": {"text": "Vers"}, "hoverformat": ".3f"},
    }
    figure = go.Figure(layout=layout(360, **axes) | {"hovermode": "closest"})
    best = pareto_set(result.scores)
    front: dict[str, Any] = {"mode": "lines", "line": {"color": NEUTRAL, "dash": "dot", "width": 1.5}}
    specs, verss = [result.scores[n].spec for n in best], [result.scores[n].vers for n in best]
    figure.add_trace(line(specs, verss, "Pareto set", NEUTRAL, **front))
    for node, score in result.scores.items():
        symbol = "star" if node == result.winner else "circle" if node in best else "circle-open"
        color = _color(result, node)
        figure.add_trace(dots([score.spec], [score.vers], node_title(node), color, size=10, symbol=symbol))
    return figure


def _color(result: SearchResult, node: Candidate) -> str:
    sets = list(dict.fromkeys(each.modules for each in result.scores))
    return COLORS[sets.index(node.modules) % len(COLORS)]
