"""Batches of trials, trained by something that only writes what plans leave."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.plan import PlanConfig
from orchestrator.sweeps.stages.chain import StageRecord
from orchestrator.sweeps.tune import driver
from orchestrator.sweeps.tune.driver import train_batches
from orchestrator.sweeps.tune.trials import Trials
from orchestrator.sweeps.work import Work
from tests.crews import WorkHere
from tests.unit.sweeps.tune.searches import DOMAINS, config_with, write_evaluation

SEARCH = {
    "type": "pbt",
    "population": 4,
    "generations": 3,
    "space": {"mixing.sigma": {"uniform": [0.1, 1.0]}, "training.learning_rate": {"loguniform": [1e-5, 1e-2]}},
}
TRAINING = {"max_steps": 30, "global_batch_size": 8, "schedule": "constant", "learning_rate": 0.001}


class Chains:
    """Stands for `train_runs`: a stage's loss is its sigma."""

    def __init__(self) -> None:
        self.waves: list[list[PlanConfig]] = []
        self.failing: set[int] = set()

    def __call__(self, plans: Sequence[PlanConfig], work: Work, crew: object, keeps_models: bool) -> dict[str, str]:
        assert keeps_models
        self.waves.append(list(plans))
        failures = {plans[place].name: "the loss is not finite" for place in self.failing if len(self.waves) == 1}
        for plan in plans:
            if plan.name not in failures:
                self._write(plan)
        return failures

    def _write(self, plan: PlanConfig) -> None:
        records = []
        for number, stage in enumerate(plan.stage_list):
            folder = plan.output_dir / "stages" / f"{plan.name}-{number}"
            for part in ("feedback", "checkpoints", "model"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            sigma: float = stage.mixing.sigma  # type: ignore[union-attr]
            for step in (0, 5, 10):
                write_evaluation(folder, step, sigma)
            record = StageRecord(
                name=stage.name,
                folder=folder,
                digest="",
                starts_from=None,
                domains={},
                steps=10,
                num_rows=80,
                num_tokens=800,
                seconds=1.0,
                loss_nats=dict.fromkeys(DOMAINS, sigma),
            )
            records.append(record.model_dump(mode="json"))
        plan.folder.mkdir(exist_ok=True)
        (plan.folder / "stages.json").write_text(json.dumps(records))


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> Chains:
    chains = Chains()
    monkeypatch.setattr(driver, "train_runs", chains)
    return chains


def run(folder: Path, chains: Chains) -> tuple[list[Any], dict[str, Any], str]:
    work, config = WorkHere(), config_with(SEARCH, output_dir=str(folder), training=TRAINING)
    search = config.build_search()
    found = train_batches(Trials(config, search.space, {}, "mean", None), search, work)
    return found.records, found.runs, work.output.export_text()


def test_every_generation_is_a_stage_more_with_its_part_of_the_steps(tmp_path: Path, chains: Chains) -> None:
    _, _, said = run(tmp_path, chains)
    assert said.splitlines() == [f"generation {number} of 3: 4 runs" for number in (1, 2, 3)]
    for number, wave in enumerate(chains.waves, start=1):
        for plan in wave:
            stages = plan.stage_list
            assert [stage.max_steps for stage in stages] == [10] * number
            assert [stage.optimizer for stage in stages] == ["fresh", "kept", "kept"][:number]
            assert [stage.seed for stage in stages] == [5, 6, 7][:number]
            assert all(stage.learning_rate is not None for stage in stages)


def test_the_worst_member_goes_on_from_the_best_ones_stages(tmp_path: Path, chains: Chains) -> None:
    run(tmp_path, chains)
    first, second = ([plan.stage_list for plan in wave] for wave in chains.waves[:2])
    sigmas = [stages[0].mixing.sigma for stages in first]  # type: ignore[union-attr]
    worst, best = sigmas.index(max(sigmas)), sigmas.index(min(sigmas))
    assert second[worst][0] == first[best][0] and second[worst][1].mixing != first[best][0].mixing
    for place in set(range(4)) - {worst}:
        assert second[place][0] == first[place][0] and second[place][1].mixing == first[place][0].mixing


def test_members_have_their_whole_course_and_the_plan_to_it(tmp_path: Path, chains: Chains) -> None:
    records, plans, _ = run(tmp_path, chains)
    assert {record.name for record in records} <= set(plans)
    for record in records:
        assert [each.step for each in record.course] == [5, 10, 15, 20, 25, 30]
        last = plans[record.name].stage_list[-1].mixing
        assert record.score == pytest.approx(last.sigma)  # type: ignore[union-attr]
        assert record.changes["mixing.sigma (3)"] == last.sigma  # type: ignore[union-attr]


def test_models_go_once_nothing_starts_from_them(tmp_path: Path, chains: Chains) -> None:
    run(tmp_path, chains)
    assert list(tmp_path.glob("stages/*/feedback"))
    assert not list(tmp_path.glob("stages/*/model")) and not list(tmp_path.glob("stages/*/checkpoints"))


def test_a_member_that_failed_is_replaced(tmp_path: Path, chains: Chains) -> None:
    chains.failing = {1}
    records, _, _ = run(tmp_path, chains)
    second = [plan.stage_list for plan in chains.waves[1]]
    assert second[1][0] != chains.waves[0][1].stage_list[0]
    assert all(record.state == "finished" for record in records)


def test_started_again_the_same_plans_come(tmp_path: Path, chains: Chains) -> None:
    run(tmp_path, chains)
    run(tmp_path, chains)
    names = [[plan.name for plan in wave] for wave in chains.waves]
    assert names[:3] == names[3:]
