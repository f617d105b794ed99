"""What a plan's chain adds up to."""

import json
from pathlib import Path

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.sweeps.stages.chain import StageRecord, plan_stages, summarise_chain
from orchestrator.views.summary import verdict_lines
from tests.unit.conftest import MakeFakeRun
from tests.unit.runs.test_verdict import both, finished, planted
from tests.unit.sweeps.stages.staged import config, fake_stores


def test_a_chain_starts_like_its_first_run_and_ends_like_its_last(fake_run: MakeFakeRun) -> None:
    paths = [fake_run(name, total_steps=steps, seed=steps).path for name, steps in (("one", 40), ("two", 60))]
    first, last = (json.loads((path / "summary.json").read_text()) for path in paths)
    chain = summarise_chain("plan", paths)
    assert (chain.name, chain.steps) == ("plan", 100)
    assert chain.num_tokens == first["num_tokens"] + last["num_tokens"]
    assert chain.tokens_per_second == pytest.approx(chain.num_tokens / (first["seconds"] + last["seconds"]))
    for name, domain in chain.domains.items():
        assert domain.loss_nats_start == first["domains"][name]["loss_nats_start"]
        assert domain.loss_nats_end == last["domains"][name]["loss_nats_end"]
        assert domain.rows_seen == first["domains"][name]["rows_seen"] + last["domains"][name]["rows_seen"]


def test_a_record_says_what_a_stage_trained_on(fake_run: MakeFakeRun) -> None:
    planned = plan_stages(config(stages=[{"name": "s", "domains": {"math": 1 / 256}}]), fake_stores)[0]
    run = fake_run("s-1", domains=("math", "code", "general"), total_steps=10)
    record = StageRecord.of(planned, run.path)
    assert {name: amount.num_examples for name, amount in record.domains.items()} == {"math": 430}
    assert (record.steps, record.num_rows, record.starts_from) == (10, 1280, None)
    assert set(record.loss_nats) == {"math", "code", "general"}


@pytest.mark.parametrize(
    ("ends", "verdict", "worse"),
    [
        ((1.0, 2.0), "improved", []),
        ((0.5, 3.2), "mixed", ["law"]),
        ((2.5, 3.5), "worse_than_base", ["math", "law"]),
        ((2.0, 3.0), "unchanged", []),
    ],
)
def test_a_plan_is_judged_by_its_end_against_the_model_that_it_began_with(
    tmp_path: Path, ends: tuple[float, float], verdict: str, worse: list[str]
) -> None:
    """Whatever was better on the way, and whatever each stage began with."""
    first = planted(tmp_path, both((2.0, 3.0), (0.1, 0.1), (1.5, 3.1)), name="first")
    second = planted(tmp_path, both((1.5, 3.1), (0.2, 0.2), ends), name="second", start={"run": str(first.path)})
    for run in (first, second):
        finished(run)
    chain = summarise_chain("plan", [first.path, second.path])
    assert (chain.verdict, chain.best, chain.started_from) == (verdict, None, None)
    assert [name for name, domain in chain.domains.items() if domain.is_worse_than_base] == worse
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "summary.json").write_text(chain.model_dump_json())
    plan = RunFolder(tmp_path / "plan")
    plan.refresh()
    assert plan.summary is not None
    told = " ".join(verdict_lines(plan, plan.summary))
    assert "base model" in told and "best/" not in told
