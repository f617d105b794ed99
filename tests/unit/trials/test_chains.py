"""In which order plans of stages are trained beside single runs, with trainings that only leave their numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.runs.records import RunSummary
from orchestrator.sweeps import chains
from orchestrator.sweeps.chains import run_chains
from orchestrator.sweeps.running import TrialsFailedError
from tests.runs import write_llama
from tests.unit.trials.summaries import write_summary

DOMAINS = ("math", "code", "chat")
MIXED = {"plan": "mixed_sequential", "specialised": ["math", "code"], "general": ["chat"]}
DMT = {"plan": "dmt", "specialised": ["math", "code"], "general": ["chat"], "k": 0.5}


class Trials:
    """Stands for `run_trials`: remembers what it was given and writes the summaries."""

    def __init__(self) -> None:
        self.calls: list[tuple[set[str], bool]] = []
        self.failing: str | None = None

    def __call__(self, configs: Sequence[RunConfig], console: Console, *, keep_models: bool) -> None:
        todo = [config for config in configs if not (config.folder / "summary.json").exists()]
        self.calls.append(({config.name.rsplit("-", 1)[0] for config in todo}, keep_models))
        reasons = {}
        for config in todo:
            if self.failing is not None and config.name.startswith(self.failing):
                reasons[config.name] = "too hot"
                continue
            config.folder.mkdir(parents=True, exist_ok=True)
            (config.folder / "config.json").write_text(config.model_dump_json())
            write_summary(config, 2.0, dict.fromkeys(config.domains, 1.0))
        if reasons:
            raise TrialsFailedError(reasons, len(configs))


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    fake = Trials()
    monkeypatch.setattr(chains, "run_trials", fake)
    return fake


@pytest.fixture
def make_config(tmp_path: Path) -> Any:
    write_llama(tmp_path / "base")
    for name in DOMAINS:
        rows = [{"prompt": f"{name} {i}", "completion": str(i)} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(name: str, stages: Any = ()) -> RunConfig:
        return RunConfig.model_validate(
            {
                "name": name,
                "output_dir": tmp_path / "runs",
                "model": {"path": str(tmp_path / "base")},
                "domains": {d: {"train": str(tmp_path / f"{d}.jsonl"), "eval_fraction": 0.2} for d in DOMAINS},
                "data": {"max_length": 64},
                "mixing": {"type": "proportional"},
                "training": {"max_steps": 5, "global_batch_size": 4},
                "stages": stages or [],
            }
        )

    return make


def test_what_others_start_from_is_trained_first_and_once_and_keeps_its_model(trials: Trials, make_config: Any) -> None:
    configs = [make_config("single-a"), make_config("mixed", MIXED), make_config("dmt", DMT)]
    assert run_chains(configs, Console(quiet=True)) == {}
    assert trials.calls == [({"specialised"}, True), ({"single", "general", "general-replay"}, False)]
    stages = json.loads((configs[2].folder / "stages.json").read_text())
    assert [stage["name"] for stage in stages] == ["specialised", "general-replay"]
    summary = RunSummary.model_validate_json((configs[2].folder / "summary.json").read_bytes())
    assert (summary.steps, summary.num_tokens, summary.domains["math"].loss_nats_end) == (10, 200, 1.0)


def test_what_is_done_is_not_done_again(trials: Trials, make_config: Any) -> None:
    configs = [make_config("single-a"), make_config("dmt", DMT)]
    run_chains(configs, Console(quiet=True))
    trials.calls.clear()
    assert run_chains(configs, Console(quiet=True)) == {}
    assert trials.calls == [(set(), False)]


def test_a_plan_fails_with_its_stage_and_the_others_go_on(trials: Trials, make_config: Any) -> None:
    trials.failing = "general-replay"
    configs = [make_config("single-a"), make_config("mixed", MIXED), make_config("dmt", DMT)]
    assert run_chains(configs, Console(quiet=True)) == {"dmt": "stage general-replay: too hot"}
    assert (configs[1].folder / "summary.json").exists() and not (configs[2].folder / "summary.json").exists()


def test_nothing_is_started_from_a_stage_that_failed(trials: Trials, make_config: Any) -> None:
    trials.failing = "specialised"
    failures = run_chains([make_config("mixed", MIXED), make_config("dmt", DMT)], Console(quiet=True))
    assert failures == {"mixed": "stage specialised: too hot", "dmt": "stage specialised: too hot"}
    assert [names for names, _ in trials.calls] == [{"specialised"}]
