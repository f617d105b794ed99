"""Labels -> configurations, and what is said of those that are not valid."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.derived import merge, nested
from orchestrator.config.errors import ConfigError
from orchestrator.config.plan import PlanConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.sweeps.compare.driver import compare_folder, default_labels, expand_variants


def config_with(variants: dict[str, Any] | None = None, **changes: Any) -> SweepConfig:
    data: dict[str, Any] = {
        "name": "study",
        "seed": 5,
        "model": {"path": "owner/name"},
        "domains": {name: {"train": f"{name}.jsonl"} for name in ("math", "code")},
        "mixing": {"type": "versatune", "initial": "uniform", "sigma": 0.7, "reference": {"math": 1.0, "code": 2.0}},
        "training": {"max_steps": 100, "global_batch_size": 8, "micro_batch_size": 4},
        "compare": {"variants": variants or {}},
    }
    return SweepConfig.model_validate(data | changes)


def test_a_name_is_the_runs_own_algorithm_or_anothers_defaults() -> None:
    runs = expand_variants(config_with(), ["uniform", "versatune"], 1)
    assert runs["versatune"][0].mixing == config_with().mixing
    assert runs["uniform"][0].mixing.type == "uniform"
    assert runs["uniform"][0].training == runs["versatune"][0].training


def test_every_seed_is_a_run_of_its_own_over_the_same_token_stores() -> None:
    config = config_with()
    runs = expand_variants(config, ["uniform", "proportional"], 3)
    assert [run.seed for run in runs["uniform"]] == [5, 6, 7]
    everything = [run for variant in runs.values() for run in variant]
    assert len({run.folder for run in everything}) == 6
    assert {run.output_dir for run in everything} == {compare_folder(config)}
    assert {run.cache_dir for run in everything} == {config.cache_dir}
    assert all(type(run) is PlanConfig for run in everything)


def test_a_variant_overrides_any_part_nested_or_dotted() -> None:
    variants = {
        "gentle": {"mixing.sigma": 0.1, "training": {"learning_rate": 1e-6}},
        "lora": {"training.strategy": {"type": "lora", "rank": 2}},
        "fixed": {"mixing": {"type": "fixed", "shares": {"math": 1.0, "code": 0.0}}},
        "epochs": {"training": {"max_steps": None, "epochs": 2}},
    }
    runs = {label: runs[0] for label, runs in expand_variants(config_with(variants), list(variants), 1).items()}
    assert (runs["gentle"].mixing.sigma, runs["gentle"].mixing.initial) == (0.1, "uniform")  # type: ignore[union-attr]
    assert (runs["gentle"].training.learning_rate, runs["gentle"].training.max_steps) == (1e-6, 100)
    assert runs["lora"].training.strategy.rank == 2  # type: ignore[union-attr]
    assert runs["fixed"].mixing.shares == {"math": 1.0, "code": 0.0}  # type: ignore[union-attr]
    assert (runs["epochs"].training.max_steps, runs["epochs"].training.epochs) == (None, 2)


def test_another_type_replaces_the_section_the_same_type_is_merged() -> None:
    base = {"mixing": {"type": "versatune", "sigma": 0.7}, "seed": 1}
    assert merge(base, {"mixing": {"type": "uniform"}}) == {"mixing": {"type": "uniform"}, "seed": 1}
    assert merge(base, {"mixing": {"type": "versatune", "floor": 0.1}})["mixing"]["sigma"] == 0.7
    assert merge(base, {"mixing": {"sigma": 0.1}})["mixing"] == {"type": "versatune", "sigma": 0.1}
    assert base["mixing"] == {"type": "versatune", "sigma": 0.7}


def test_dotted_keys_are_written_out_together() -> None:
    assert nested({"a.b": 1, "a.c": 2, "d": {"e": 3}}) == {"a": {"b": 1, "c": 2}, "d": {"e": 3}}


def test_every_fault_of_every_variant_is_named() -> None:
    variants = {"hasty": {"training.max_steps": 0}, "strange": {"mixing.sgima": 1}, "fine": {"seed": 1}}
    with pytest.raises(ConfigError) as caught:
        expand_variants(config_with(variants), [*variants, "magic"], 2)
    text = "\n".join(caught.value.lines)
    assert "compare.variants.hasty: training.max_steps" in text
    assert "compare.variants.strange: mixing.sgima" in text and "sigma" in text
    assert "'magic' is neither" in text and "versatune" in text
    assert "fine" not in text.replace("known: hasty, strange, fine", "")


def test_a_label_stands_once() -> None:
    with pytest.raises(ConfigError, match="uniform: duplicate label"):
        expand_variants(config_with(), ["uniform", "uniform"], 1)


def test_without_labels_the_variants_are_compared_else_uniform_with_the_runs_algorithm() -> None:
    assert default_labels(config_with({"a": {}, "b": {}})) == ["a", "b"]
    assert default_labels(config_with()) == ["uniform", "versatune"]
    assert default_labels(config_with(mixing={"type": "uniform"})) == ["uniform"]


def test_the_target_is_a_domain() -> None:
    with pytest.raises(ValueError, match=r"compare.target: 'law' is not a domain"):
        config_with(compare={"target": "law"})


def test_a_name_that_leaves_the_folder_is_no_label() -> None:
    with pytest.raises(ValueError, match="pattern"):
        config_with({"../../elsewhere": {}})


def test_the_section_does_not_bind_a_run(tmp_path: Path) -> None:
    from orchestrator.runs.lock import claim_folder

    with claim_folder(config_with(output_dir=tmp_path)) as first:
        pass
    with claim_folder(config_with({"late": {"seed": 9}}, output_dir=tmp_path)) as second:
        assert first == second
