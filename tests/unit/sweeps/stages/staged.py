"""Configurations of plans, and token stores that are nothing but fingerprints and counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import SweepConfig

SIZES = {"math": 110_142, "code": 20_022, "general": 86_060}


def config(folder: Path = Path("runs"), **changes: Any) -> SweepConfig:
    """The paper's three domains, three epochs of plain concatenation."""
    data: dict[str, Any] = {
        "name": "plan",
        "output_dir": str(folder),
        "model": {"path": "o/m"},
        "domains": {name: {"train": f"{name}.jsonl", "eval": f"{name}-eval.jsonl"} for name in SIZES},
        "mixing": {"type": "proportional"},
        "training": {"epochs": 3},
    }
    return SweepConfig.model_validate(data | changes)


@dataclass(frozen=True)
class FakeStore:
    fingerprint: str
    num_examples: int
    num_rows: int
    num_tokens: int


@dataclass(frozen=True)
class FakeStores:
    train: FakeStore | None
    eval: FakeStore
    stream: None = None


def fake_stores(run: RunConfig) -> Mapping[str, Any]:
    """What preparing would give: one row an example, 100 tokens a row."""
    stores = {}
    for name, domain in run.domains.items():
        size = domain.count or max(1, round(domain.fraction * SIZES[name]))
        part = f"{name}-{domain.train}-{domain.fraction}-{domain.count}-{run.data.sample_seed}"
        train = FakeStore(part, size, size, 100 * size) if domain.is_trained else None
        stores[name] = FakeStores(train, FakeStore(f"{name}-eval", 64, 64, 6400))
    return stores
