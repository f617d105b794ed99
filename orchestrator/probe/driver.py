"""`raymix probe`: compare several models, or a run's base model and its result."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import read_begun
from orchestrator.prepare.detection.domain_texts import find_domain_texts
from orchestrator.probe.geometry import Geometry, Ints, describe_geometry, layer_index, mean_hidden_states
from orchestrator.views.format import color_by_name, format_share
from orchestrator.views.report.figures import Plot, Section, label, layout, matrix_figure
from orchestrator.views.report.html import render_page
from orchestrator.views.table import Cell, Column, ResultTable, Row, columns_of
from workers.config.model import ModelConfig
from workers.durable import write_durably

_NOTE = "t-SNE of mean hidden states, one point per held-out text. Neighbours are meaningful; gaps and sizes are not."


@dataclass(frozen=True)
class Probe:
    layer: str
    domains: list[str]
    texts: list[str]
    labels_N: Ints
    geometries: dict[str, Geometry]


def probe(
    names: Sequence[str], config: RunConfig | None, layer: str, num_examples: int, output: Path, console: Console
) -> None:
    """Probe models; write a page to `output` (.html) and the numbers next to it (.json).

    `names` are run folders, each standing for its base model and its result, or model folders and hub names. `config`
    has domains, precision and seed; None for the first run's. `layer` is a fraction of the depth such as "0.5", or a
    layer number. ValueError if there is no configuration, no such layer, or too few texts.
    """
    if config is None:
        run = next((Path(name) for name in names if _is_run(name)), None)
        if run is None:
            raise ValueError(f"none of {list(names)} is a run folder; give the domains to probe with --config")
        config = read_begun(run)
    models = _models(names, config)
    _check(models, layer)
    domains = list(config.domains)
    texts: list[str] = []
    labels: list[int] = []
    for number, (name, domain) in enumerate(config.domains.items()):
        sides = find_domain_texts(name, domain.with_absolute_paths(), config.data.zstd_window_mib)
        found = sides.read(True, num_examples, config.seed)
        texts += found
        labels += [number] * len(found)
    labels_N = np.array(labels)
    geometries = {}
    for name, model in models.items():
        console.print(f"{name}: {len(texts):,} texts", markup=False, highlight=False)
        states_NH = mean_hidden_states(model, texts, layer, config.data.max_length)
        geometries[name] = describe_geometry(states_NH, labels_N, config.seed)
    done = Probe(layer, domains, texts, labels_N, geometries)
    write_durably(output.with_suffix(".json"), json.dumps(_numbers(done), indent=1).encode())
    write_durably(output, _page(done).encode("utf-8", "replace"))
    console.print(table(done).to_rich())
    console.print(f"page: {output}, numbers: {output.with_suffix('.json')}", markup=False, highlight=False)


def _check(models: Mapping[str, ModelConfig], layer: str) -> None:
    """Refuse a model that cannot be read, and a layer that one does not have, before any text is read."""
    from workers.model.base_config import load_text_config  # imports transformers

    for name, model in models.items():
        try:
            num_layers = load_text_config(model).num_hidden_layers
        except ValueError as error:
            raise ValueError(f"{name}: {str(error).removeprefix('model.path: ')}") from error
        layer_index(layer, num_layers)


def _is_run(name: str) -> bool:
    return (Path(name) / "weights").is_dir() and (Path(name) / "config.json").is_file()


def _models(names: Sequence[str], config: RunConfig) -> dict[str, ModelConfig]:
    """The models by name; a base model that several runs share appears once."""
    models: dict[str, ModelConfig] = {}

    def add(name: str, model: ModelConfig) -> None:
        if model not in models.values():
            models[name if name not in models else f"{name} ({model.path})"] = model

    for name in names:
        if not _is_run(name):
            add(Path(name).name, config.model.replaced(path=name, revision=None))
            continue
        begun = read_begun(Path(name))
        result = Path(name) / "model"
        if not result.is_dir():
            raise ValueError(f"{name}: has no model/: the run has not finished; finish it, or name a model folder")
        add("base", begun.model)
        add(begun.name, begun.model.replaced(path=str(result), revision=None))
    return models


def _numbers(done: Probe) -> dict[str, object]:
    def by_domain(geometry: Geometry) -> dict[str, dict[str, float]]:
        rows = zip(done.domains, geometry.centroid_distances_DD.tolist(), strict=True)
        return {name: dict(zip(done.domains, row, strict=True)) for name, row in rows}

    return {
        "layer": done.layer,
        "num_texts": dict(zip(done.domains, np.bincount(done.labels_N).tolist(), strict=True)),
        "models": {
            name: {
                "silhouette": geometry.silhouette,
                "linear_probe_accuracy": geometry.linear_probe_accuracy,
                "centroid_distances": by_domain(geometry),
            }
            for name, geometry in done.geometries.items()
        },
    }


def table(done: Probe) -> ResultTable:
    nearest = [nearest_domains(geometry, done.domains) for geometry in done.geometries.values()]
    measured = [
        (f"{geometry.silhouette:.3f}", format_share(geometry.linear_probe_accuracy))
        for geometry in done.geometries.values()
    ]
    words = [Cell(f"{first} and {second}, {distance:.2f}") for first, second, distance in nearest]
    return ResultTable(
        "Model",
        [Row(name) for name in done.geometries],
        [*columns_of(("Silhouette", "Linear probe"), measured), Column("Nearest domains", words, is_text=True)],
        explanation="Silhouette: 1 is separate, 0 is mixed. Linear probe: balanced accuracy, cross-validated, of a "
        "logistic regression that predicts the domain. Distance: between the domains' means, in units of the spread "
        "within a domain.",
    )


def nearest_domains(geometry: Geometry, domains: Sequence[str]) -> tuple[str, str, float]:
    apart_DD = geometry.centroid_distances_DD + np.diag(np.full(len(domains), np.inf))
    first, second = divmod(int(apart_DD.argmin()), len(domains))
    return domains[first], domains[second], float(apart_DD[first, second])


def _page(done: Probe) -> str:
    pictures = [Plot(name, _picture(done, geometry)) for name, geometry in done.geometries.items()]
    far = "Distance between the domains' means, in units of the spread within a domain."
    limit = max(float(geometry.centroid_distances_DD.max()) for geometry in done.geometries.values())
    distances = [
        Plot(name, matrix_figure(geometry.centroid_distances_DD.tolist(), done.domains, limit, "to"))
        for name, geometry in done.geometries.items()
    ]
    return render_page(
        "probe.html",
        [Section("Picture", _NOTE, pictures), Section("Centroid distances", far, distances)],
        title="Representation probe",
        facts={"Layer": done.layer, "Texts": f"{len(done.texts):,}"},
        table=table(done),
        domain_colors=color_by_name(done.domains),
    )


def _picture(done: Probe, geometry: Geometry) -> go.Figure:
    figure = go.Figure(layout=layout(360, xaxis={"visible": False, "rangemode": "normal"}, yaxis={"visible": False}))
    figure.update_layout(hovermode="closest")
    for number, (domain, color) in enumerate(color_by_name(done.domains).items()):
        members = np.flatnonzero(done.labels_N == number)
        x, y = geometry.points_N2[members].T.tolist()
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="markers",
                name=label(domain),
                legendgroup=domain,
                marker={"size": 5, "color": color, "opacity": 0.75},
                text=[label(done.texts[place]) for place in members],
                hovertemplate="%{text}<extra>" + label(domain) + "</extra>",
            )
        )
    return figure
