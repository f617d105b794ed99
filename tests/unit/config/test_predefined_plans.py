"""The ready-made plans are the stages of the paper (arXiv 2310.05492, section 3.5)."""

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.config.predefined_plans import expand
from orchestrator.sweeps.stages.chain import plan_stages
from tests.unit.sweeps.stages.staged import config, fake_stores
from workers.data.preparing import Sample

SPECIAL_GENERAL = {"specialised": ["math", "code"], "general": ["general"]}


def stages_of(plan: dict[str, Any]) -> list[tuple[str, dict[str, float] | None]]:
    return [(stage.start, stage.domains) for stage in config(stages=plan).stage_list]


def test_multi_task_is_one_stage_on_everything() -> None:
    assert stages_of({"plan": "multi_task"}) == [("base", None)]
    assert stages_of({"plan": "multi_task", "domains": ["code"]}) == [("base", {"code": 1.0})]


def test_sequential_takes_one_domain_after_the_other() -> None:
    plan = {"plan": "sequential", "order": ["code", "math", "general"]}
    assert stages_of(plan) == [("base", {"code": 1.0}), ("previous", {"math": 1.0}), ("previous", {"general": 1.0})]


def test_mixed_sequential_takes_the_specialised_together_then_the_general() -> None:
    plan = {"plan": "mixed_sequential", **SPECIAL_GENERAL}
    assert stages_of(plan) == [("base", {"math": 1.0, "code": 1.0}), ("previous", {"general": 1.0})]


def test_dmt_replays_k_of_each_specialised_domain() -> None:
    first = ("base", {"math": 1.0, "code": 1.0})
    replay = {"general": 1.0, "math": 1 / 256, "code": 1 / 256}
    assert stages_of({"plan": "dmt", **SPECIAL_GENERAL}) == [first, ("previous", replay)]
    each = {"plan": "dmt", "k": {"math": 0.5, "code": 0}, **SPECIAL_GENERAL}
    assert stages_of(each) == [first, ("previous", {"general": 1.0, "math": 0.5})]


def test_dmt_at_zero_is_mixed_sequential() -> None:
    assert (
        config(stages={"plan": "dmt", "k": 0, **SPECIAL_GENERAL}).stage_list
        == config(stages={"plan": "mixed_sequential", **SPECIAL_GENERAL}).stage_list
    )


def test_the_row_counts_of_the_paper_at_one_256th() -> None:
    """430 of 110,142 and 78 of 20,022 rows beside 86,060: 0.59 % of stage 2 (its table of sizes)."""
    first, second = plan_stages(config(stages={"plan": "dmt", **SPECIAL_GENERAL}), fake_stores)
    rows = {name: store.train.num_examples for name, store in second.stores.items() if store.train}
    assert rows == {"math": 430, "code": 78, "general": 86_060}
    assert (430 + 78) / sum(rows.values()) == pytest.approx(0.0059, abs=5e-5)
    assert first.stores["general"].train is None  # measured, not trained on
    for name, size, expected in (("math", 110_142, 430), ("code", 20_022, 78), ("general", 86_060, 336)):
        chosen = Sample(fraction=1 / 256, count=None, seed=0).choose(name, size)
        assert chosen is not None and len(chosen) == expected


def test_the_plans_own_settings_hold_in_every_stage_but_the_first_has_no_optimizer_to_keep() -> None:
    plan = {"plan": "mixed_sequential", "epochs": 1, "optimizer": "kept", "learning_rate": 1e-6, **SPECIAL_GENERAL}
    first, second = config(stages=plan).stage_list
    assert (first.optimizer, second.optimizer) == ("fresh", "kept")
    assert first.epochs == second.epochs == 1 and first.learning_rate == second.learning_rate == 1e-6


def test_the_resolved_configuration_holds_the_expansion() -> None:
    resolved = config(stages={"plan": "dmt", **SPECIAL_GENERAL})
    again = type(resolved).model_validate_json(resolved.model_dump_json())
    assert again == resolved and expand(again.stages) == resolved.stage_list
    assert [stage["name"] for stage in resolved.model_dump()["stages"]] == ["specialised", "general-replay"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"plan": "dmt", "specialised": ["math"], "general": ["math"]}, r"\['math'\] twice"),
        ({"plan": "dmt", "k": 1.5, **SPECIAL_GENERAL}, "less than or equal to 1"),
        ({"plan": "dmt", "k": {"math": 0.5}, **SPECIAL_GENERAL}, "k names"),
        ({"plan": "sequential", "order": ["law"]}, r"\['law'\] are not domains"),
        ([{"name": "a", "domains": {"math": 1.5}}], "neither a fraction"),
        ([{"name": "a", "domains": {"math": 0}}], "trains on nothing"),
        ([{"name": "a", "domains": ["math", "math"]}], "given twice"),
        ([{"name": "base"}], "has a special meaning"),
        ([{"name": "a"}, {"name": "a"}], r"stages\[1\].name: 'a' is already"),
        ([{"name": "a", "start": "b"}, {"name": "b"}], r"stages\[0\].start: 'b' is not base, previous, or one of"),
        (
            [{"name": "a", "optimizer": "kept"}],
            r"stages\[0\].optimizer: a stage that starts from the base model has none",
        ),
        ([{"name": "a"}, {"name": "b", "optimizer": "kept", "strategy": {"type": "lora"}}], "trains other parameters"),
        (
            [{"name": "a", "domains": ["math", "code"], "mixing": {"type": "versatune", "floor": 0.6}}],
            r"stages\[0\]: is not valid as a run: mixing.floor: 0.6 for 2 domains",
        ),
        ([{"name": "a", "epochs": 1, "max_tokens": 5}], "give one of epochs and max_tokens"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(stages: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(stages=stages)
