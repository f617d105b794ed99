"""What a plan's chain adds up to."""

import json

import pytest

from orchestrator.stages.chain import plan_stages
from orchestrator.stages.records import StageRecord, summarise_chain
from tests.unit.conftest import MakeFakeRun
from tests.unit.stages.staged import config, fake_stores


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
