"""`raymix coarse-search` from its configuration to coarse.json, its page and a strategy to run.

Every node is a run for each seed, in <output_dir>/<name>-search/<layers>-<modules>-seed<seed>; full fine-tuning, which
Spec is relative to, is another. What was trained is found again, so a search that was stopped resumes.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console

from orchestrator.config.derived import derive
from orchestrator.config.run import RunConfig
from orchestrator.config.sections import CoarseSearchConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.folder import read_summary
from orchestrator.sweeps.coarse.page import table, write_search_page
from orchestrator.sweeps.coarse.tree import (
    BROAD_RANGES,
    Candidate,
    CandidateScore,
    SearchResult,
    gain_and_rest,
    halves,
    mean_scores,
    pareto_set,
    read_task_scores,
    score_by_losses,
    score_by_tasks,
    search,
)
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.run import RunsFailedError, train_runs
from orchestrator.sweeps.work import Work, open_work, publish
from workers.durable import write_durably
from workers.strategies.cofitune.config import trained_layers


class CandidateRecord(BaseModel):
    """A node in coarse.json."""

    layers: tuple[float, float]
    modules: list[str]
    steps: list[int]
    """Steps of the search that compared it, from 1."""
    spec: float
    vers: float
    uni: float
    is_kept: bool
    """Whether a step kept it, or it won."""
    is_pareto: bool
    """Whether no other node is better in Spec and Vers at once."""
    runs: list[Path]


class CoarseRecord(BaseModel):
    """coarse.json."""

    name: str
    versatility_weight: float
    full_versatility: float | None
    """Vers of full fine-tuning, whose Spec is 1."""
    winner: dict[str, Any]
    """The strategy section of the winner."""
    nodes: list[CandidateRecord]


def coarse_search(config: SweepConfig, console: Console) -> CoarseRecord:
    """Search, then print the nodes and write coarse.json, coarse.csv, coarse.html and strategy.yaml.

    Raises:
        ValueError: the configuration has no `coarse_search` section, or the model too few layers.
        MissingScoresError: with `scores: files`, models wait for theirs.
        RunsFailedError: a node could not be trained.
    """
    settings = settings_of(config)
    _check_layers(config)
    with open_work(search_folder(config) / "trials.log") as work:
        trainer = _Trainer(config, settings, work)
        result = search(
            trainer.score,
            versatility_weight=settings.versatility_weight,
            beam_width=settings.beam_width,
            tie_margin=settings.tie_margin,
            module_sets=[tuple(modules) for modules in settings.module_sets],
        )
    record = _record(config, result, trainer)
    folder = search_folder(config)
    strategy = strategy_of(result.winner)
    text = yaml.safe_dump({"strategy": strategy}, sort_keys=False, default_flow_style=None)
    about = "# The winner of the search, for `training` of a configuration.\n"
    write_durably(folder / "strategy.yaml", (about + text).encode())
    write_search_page(config.name, result, folder / "coarse.html")
    publish(record, table(result), folder / "coarse.html", console)
    console.print(f"raymix run CONFIG --set '{override(strategy)}'", highlight=False, markup=False, soft_wrap=True)
    return record


class _Trainer:
    """Trains nodes, and what they are compared with, and scores them."""

    def __init__(self, config: SweepConfig, settings: CoarseSearchConfig, work: Work) -> None:
        self.config, self.settings, self.work = config, settings, work
        self.full_versatility: float | None = None

    def score(self, nodes: Sequence[Candidate]) -> dict[Candidate, CandidateScore]:
        """Train the nodes side by side, full fine-tuning with the first of them, and score them."""
        full = full_runs(self.config)
        runs = {node: node_runs(self.config, node) for node in nodes}
        everything = [*full, *chain.from_iterable(runs.values())]
        keeps_models = self.settings.scores == "files"
        if failures := train_runs(everything, self.work, SideBySide(self.work.console), keeps_models=keeps_models):
            raise RunsFailedError(failures, len(everything))
        if self.settings.scores == "losses":
            full_gain, self.full_versatility = self._measure(full)
            return {node: score_by_losses(*self._measure(of_node), full_gain) for node, of_node in runs.items()}
        base_folder = search_folder(self.config) / "base"
        tasks = read_task_scores([base_folder, *(run.folder for run in everything)])
        base, full_score = tasks[base_folder], mean_scores([tasks[run.folder] for run in full])
        of_nodes = {node: mean_scores([tasks[run.folder] for run in of_node]) for node, of_node in runs.items()}
        scores = {node: score_by_tasks(mean, full_score, base) for node, mean in of_nodes.items()}
        self.full_versatility = full_score.versatility / base.versatility
        return scores

    def _measure(self, runs: Sequence[RunConfig]) -> tuple[float, float]:
        """Mean gain of the speciality, and mean of what is left of all else, over the seeds."""
        measured = []
        for run in runs:
            summary = read_summary(run.folder)
            assert summary is not None  # a run without one has failed
            measured.append(gain_and_rest(summary.domains, self.settings.speciality))
        gains, lefts = zip(*measured, strict=True)
        return math.fsum(gains) / len(gains), math.fsum(lefts) / len(lefts)


def _check_layers(config: SweepConfig) -> None:
    """Refuse a model without a layer in each range that the search may reach, before anything is trained."""
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(config.model.path, revision=config.model.revision, trust_remote_code=False)
    num_layers = model.get_text_config().num_hidden_layers
    for layers in (half for broad in BROAD_RANGES for half in halves(broad)):
        try:
            trained_layers(layers, num_layers)
        except ValueError:
            raise ValueError(
                f"coarse_search: the part {list(layers)} of {num_layers} layers has no layer in it; the search "
                "compares quarters of the depth and needs a model of at least 4 layers"
            ) from None


def _record(config: SweepConfig, result: SearchResult, trainer: _Trainer) -> CoarseRecord:
    kept = {node for step in result.steps for node in step.kept}
    best = set(pareto_set(result.scores))
    nodes = [
        CandidateRecord(
            layers=node.layers,
            modules=list(node.modules),
            steps=[number for number, step in enumerate(result.steps, start=1) if node in step.nodes],
            spec=score.spec,
            vers=score.vers,
            uni=result.uni(node),
            is_kept=node in kept,
            is_pareto=node in best,
            runs=[run.folder for run in node_runs(config, node)],
        )
        for node, score in result.scores.items()
    ]
    return CoarseRecord(
        name=config.name,
        versatility_weight=result.versatility_weight,
        full_versatility=trainer.full_versatility,
        winner=strategy_of(result.winner),
        nodes=nodes,
    )


def settings_of(config: SweepConfig) -> CoarseSearchConfig:
    """The section of the search; ValueError if it is missing."""
    if config.coarse_search is None:
        raise ValueError("coarse_search: the section is missing; name at least `coarse_search: {speciality: [...]}`")
    return config.coarse_search


def search_folder(config: RunConfig) -> Path:
    return config.output_dir / f"{config.name}-search"


def strategy_of(node: Candidate) -> dict[str, Any]:
    """The `training.strategy` that trains a node, with the soft mask that the search goes without."""
    return {"type": "cofitune", "layers": list(node.layers), "modules": list(node.modules)}


def override(strategy: Mapping[str, Any]) -> str:
    """The strategy as `raymix run --set` takes it."""
    text = yaml.safe_dump(dict(strategy), sort_keys=False, default_flow_style=True, width=math.inf)
    return f"training.strategy={text.strip()}"


def node_runs(config: SweepConfig, node: Candidate) -> list[RunConfig]:
    """A node's run for each seed, without the soft mask."""
    first, last = (f"{100 * end:g}" for end in node.layers)
    return _runs(config, f"layers-{first}-{last}-{'-and-'.join(node.modules)}", strategy_of(node) | {"mask": "none"})


def full_runs(config: SweepConfig) -> list[RunConfig]:
    return _runs(config, "full", {"type": "full"})


def _runs(config: SweepConfig, name: str, strategy: Mapping[str, Any]) -> list[RunConfig]:
    """The speciality alone is trained on, everything is measured."""
    settings = settings_of(config)
    others = [domain for domain in config.domains if domain not in settings.speciality]
    changes: dict[str, Any] = {
        "output_dir": str(search_folder(config)),
        "domains": {domain: {"fraction": 0.0, "count": None} for domain in others},
        "mixing": {"type": "proportional"},
        "training": {"strategy": dict(strategy)},
    }
    seeds = range(config.seed, config.seed + settings.num_seeds)
    named = [changes | {"name": f"{name}-seed{seed}", "seed": seed} for seed in seeds]
    return [derive(RunConfig, config, each, f"coarse_search, {name}") for each in named]
