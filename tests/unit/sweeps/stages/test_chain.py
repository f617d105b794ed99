"""A stage's folder is named by all that its result depends on, and by nothing else."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.sweep import SweepConfig
from orchestrator.sweeps.stages.chain import plan_stages
from tests.unit.sweeps.stages.staged import config, fake_stores

DMT = {"plan": "dmt", "specialised": ["math", "code"], "general": ["general"]}


def digests(settings: SweepConfig) -> list[str]:
    return [planned.digest for planned in plan_stages(settings, fake_stores)]


def dmt(**changes: Any) -> SweepConfig:
    plan = {**DMT, **changes.pop("plan", {})}
    return config(stages=plan, **changes)


def test_plans_share_the_stages_that_are_the_same() -> None:
    first, second = digests(dmt())
    assert digests(dmt(plan={"k": 0.25}))[0] == first
    assert digests(dmt(plan={"k": 0.25}))[1] != second
    mixed = digests(config(stages={**DMT, "plan": "mixed_sequential"}))
    assert mixed[0] == first and mixed == digests(dmt(plan={"k": 0}))
    written_out = [
        {"name": "mine", "domains": ["math", "code"]},
        {"name": "yours", "domains": {"general": 1, "math": 1 / 256, "code": 1 / 256}},
    ]
    assert digests(config(stages=written_out)) == [first, second]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"cluster": {"num_workers": 2}},
        {"data": {"cache_dir": "elsewhere", "log_samples": True}},
        {"study": {"specialised": ["math"], "general": ["general"]}, "stages": []},
    ],
)
def test_what_computes_nothing_changes_no_digest(changes: dict[str, Any]) -> None:
    if "stages" in changes:  # a study beside the settings: its cells are planned without it
        stripped = config(**changes).model_copy(update={"stages": dmt().stages})
        assert digests(stripped) == digests(dmt())
    else:
        assert digests(dmt(**changes)) == digests(dmt())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"model": {"path": "o/other"}},
        {"training": {"epochs": 2}},
        {"training": {"epochs": 3, "learning_rate": 1e-4}},
        {"training": {"epochs": 3, "strategy": {"type": "lora"}}},
        {"mixing": {"type": "uniform"}},
        {"data": {"sample_seed": 1}},
        {"data": {"max_length": 512}},
        {"evaluation": {"every": 7}},
    ],
)
def test_what_computes_changes_the_digest_of_every_stage(changes: dict[str, Any]) -> None:
    before, after = digests(dmt()), digests(dmt(**changes))
    assert before[0] != after[0] and before[1] != after[1]


def test_how_references_are_measured_counts_where_they_are_measured() -> None:
    def with_steps(max_steps: int, reference: Any) -> list[str]:
        mixing = {"type": "versatune", "initial": "uniform", "reference": reference}
        return digests(dmt(mixing=mixing, reference={"max_steps": max_steps}))

    given = dict.fromkeys(("math", "code", "general"), 1.0)
    assert with_steps(5, "computed")[0] != with_steps(6, "computed")[0]
    assert with_steps(5, given) == with_steps(6, given)


def test_other_rows_in_the_same_files_change_the_digest() -> None:
    def other(run: SweepConfig) -> Any:
        stores = dict(fake_stores(run))
        stores["general"] = fake_stores(config(data={"sample_seed": 3}))["general"]
        return stores

    assert [p.digest for p in plan_stages(dmt(), other)] != digests(dmt())


def test_a_stage_depends_on_the_whole_chain_before_it() -> None:
    def chain(rate: float, optimizer: str = "fresh") -> list[str]:
        stages = [
            {"name": "a", "domains": ["math"], "learning_rate": rate},
            {"name": "b", "domains": ["code"]},
            {"name": "c", "domains": ["general"], "optimizer": optimizer},
        ]
        return digests(config(stages=stages))

    assert all(one != two for one, two in zip(chain(1e-5), chain(2e-5), strict=True))
    assert [one == two for one, two in zip(chain(1e-5), chain(1e-5, "kept"), strict=True)] == [True, True, False]


def test_a_begun_folder_is_found_under_another_name(tmp_path: Path) -> None:
    planned = plan_stages(config(tmp_path, stages=DMT), fake_stores)[0]
    assert planned.find_folder() == tmp_path / "stages" / f"specialised-{planned.digest}"
    begun = tmp_path / "stages" / f"mine-{planned.digest}"
    begun.mkdir(parents=True)
    assert planned.find_folder() == begun
    run = planned.started_from(None, begun)
    assert run.folder == begun and run.start is None
    assert planned.started_from(Path("p"), begun).start.run == Path("p")  # type: ignore[union-attr]
