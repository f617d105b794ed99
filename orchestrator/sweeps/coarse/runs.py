"""The runs of a search: one for each node and seed, and full fine-tuning, which Spec is relative to. Pure."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.derived import derive
from orchestrator.config.run import RunConfig
from orchestrator.config.sections import CoarseSearchConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.sweeps.coarse.tree import Candidate


def settings_of(config: SweepConfig) -> CoarseSearchConfig:
    """The section of the search.

    Raises:
        ValueError: the section is missing.
    """
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
