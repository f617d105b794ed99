"""A stage is an ordinary run: what it takes from the plan's configuration, and what it leaves out."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.plan import find_parent, stage_run
from orchestrator.config.run import RunConfig
from orchestrator.config.stages import StageConfig
from orchestrator.config.sweep import SweepConfig
from tests.unit.sweeps.stages.staged import config


def run_of(settings: SweepConfig, **stage: Any) -> SweepConfig:
    return stage_run(settings, StageConfig(name="s", **stage))


def test_every_domain_is_measured_and_the_named_ones_are_trained_on() -> None:
    run = run_of(config(), domains={"math": 0.25, "general": 500})
    assert list(run.domains) == ["math", "code", "general"]
    assert run.trained_domains == ["math", "general"]
    assert run.domains["math"].fraction == 0.25 and run.domains["general"].count == 500
    assert run_of(config()).trained_domains == ["math", "code", "general"]


def test_a_fraction_is_one_of_what_the_run_takes() -> None:
    domains = {
        "math": {"train": "m", "fraction": 0.5},
        "code": {"train": "c", "count": 1000},
        "general": {"train": "g", "eval": "e"},
    }
    run = run_of(config(domains=domains), domains={"math": 0.5, "code": 1 / 256})
    assert run.domains["math"].fraction == 0.25
    assert (run.domains["code"].count, run.domains["code"].fraction) == (4, 1.0)
    assert run_of(config(domains=domains), domains={"code": 0.00001, "math": 1}).domains["code"].count == 1


def test_a_stage_may_have_a_seed_of_its_own() -> None:
    settings = config(seed=7)
    assert (run_of(settings).seed, run_of(settings, seed=3).seed) == (7, 3)


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ({}, "epochs", 3),
        ({"max_steps": 7}, "max_steps", 7),
        ({"max_steps": 7}, "epochs", None),
        ({"max_tokens": 70}, "max_tokens", 70),
        ({"learning_rate": 1e-3}, "learning_rate", 1e-3),
        ({"schedule": "constant"}, "schedule", "constant"),
        ({"warmup_fraction": 0.5}, "warmup_fraction", 0.5),
    ],
)
def test_settings_are_the_stages_own_or_the_runs(stage: dict[str, Any], key: str, value: Any) -> None:
    assert getattr(run_of(config(), **stage).training, key) == value


def test_mixing_by_domain_is_cut_to_the_trained_domains() -> None:
    shares = {"math": 0.5, "code": 0.25, "general": 0.25}
    fixed = run_of(config(mixing={"type": "fixed", "shares": shares}), domains=["math", "code"])
    assert fixed.mixing.shares == pytest.approx({"math": 2 / 3, "code": 1 / 3})  # type: ignore[union-attr]
    reference = dict.fromkeys(shares, 1.5)
    versatune = config(mixing={"type": "versatune", "initial": shares, "reference": reference})
    cut = run_of(versatune, domains=["code", "general"]).mixing
    assert cut.reference == {"code": 1.5, "general": 1.5}  # type: ignore[union-attr]
    assert cut.initial == {"code": 0.5, "general": 0.5}  # type: ignore[union-attr]


def test_stages_share_the_token_stores_of_the_run() -> None:
    run = run_of(config(Path("out")))
    assert run.output_dir == Path("out/stages") and run.cache_dir == Path("out/token-stores")
    assert type(run) is RunConfig


def test_a_start_is_the_base_the_stage_before_or_a_named_one() -> None:
    stages = [
        StageConfig(name="a"),
        StageConfig(name="b"),
        StageConfig(name="c", start="a"),
        StageConfig(name="d", start="base"),
    ]
    assert [find_parent(stages, index) for index in range(4)] == [None, 0, 0, None]
