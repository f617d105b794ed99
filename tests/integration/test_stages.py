"""Plans of stages on real ZeRO: what is carried from stage to stage, what is shared, what a stopped plan becomes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from orchestrator.config.load import load_config
from orchestrator.prepare.data import PreparedData
from orchestrator.sweeps.study.grid import build_cells, plan_trainings
from tests.integration import stage_cases
from tests.integration.zero_processes import processes
from tests.runs import read_lines, write_run
from workers.contracts import DomainFeedback

DMT = {"plan": "dmt", "specialised": ["add", "copy"], "general": ["law"], "k": 0.1}
STUDY = {
    "specialised": ["add", "copy"],
    "general": ["law"],
    "k": [1],
    "grids": ["single"],
    "strategies": ["sequential"],
    "num_resamples": 100,
}


def train(config: Path, stages: Any, *overrides: str, stop: tuple[int, int] | None = None) -> list[str]:
    values = [f"stages={json.dumps(stages)}", *overrides]
    return processes(1).run(stage_cases.train_plan, config, values, stop)[0]


def feedback(folder: Path) -> list[DomainFeedback]:
    return [DomainFeedback.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("feedback/*.json"))]


def losses(folder: Path) -> list[tuple[dict[str, float], dict[str, int]]]:
    return [(item.loss_sum_nats, item.num_tokens) for item in feedback(folder)]


def adam_step(folder: Path) -> int:
    newest = sorted(folder.glob("checkpoints/step-*"))[-1]
    return json.loads((newest / "state.json").read_text())["adam_step"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, 12 steps a stage; the law domain is the general one."""
    return write_run(
        tmp_path_factory.mktemp("stages"),
        name="dmt",
        mixing={"type": "proportional"},
        training__max_steps=12,
        training__checkpoint_every=5,
        data={"max_length": 128, "log_samples": True},
        cluster={"num_workers": 1},
    )


@pytest.fixture(scope="module")
def plan(config: Path) -> list[Path]:
    """The folders of the two stages of a finished plan."""
    names = train(config, DMT)
    assert len(names) == 2
    return [config.parent / "runs" / "stages" / name for name in names]


def test_a_plan_leaves_its_chain_its_model_and_a_summary(config: Path, plan: list[Path]) -> None:
    folder = config.parent / "runs" / "dmt"
    records = json.loads((folder / "stages.json").read_text())
    assert [Path(record["folder"]) for record in records] == plan
    assert [record["starts_from"] for record in records] == [None, str(plan[0])]
    assert set(records[0]["domains"]) == {"add", "copy"} and set(records[1]["domains"]) == {"add", "copy", "law"}
    assert records[1]["domains"]["add"]["num_examples"] == round(0.1 * records[0]["domains"]["add"]["num_examples"])
    summary = json.loads((folder / "summary.json").read_text())
    last = json.loads((plan[1] / "summary.json").read_text())
    assert summary["steps"] == 24
    for name, domain in summary["domains"].items():
        assert domain["loss_nats_end"] == last["domains"][name]["loss_nats_end"]
    for path in (plan[1] / "model").iterdir():
        assert (folder / "model" / path.name).read_bytes() == path.read_bytes()


def test_every_domain_is_measured_at_every_stage_and_only_the_named_are_drawn(plan: list[Path]) -> None:
    for folder, drawn in zip(plan, ({"add", "copy"}, {"add", "copy", "law"}), strict=True):
        assert all(set(item.loss_sum_nats) == {"add", "copy", "law"} for item in feedback(folder))
        assert {line["domain"] for line in read_lines(folder / "samples.jsonl")} == drawn


def test_a_stage_begins_exactly_where_the_one_before_ended(plan: list[Path]) -> None:
    assert losses(plan[1])[0] == losses(plan[0])[-1]


def test_the_losses_of_the_examples_add_up_to_the_last_feedback(plan: list[Path]) -> None:
    for folder in plan:
        rows = json.loads((folder / "evaluation.json").read_text())["domains"]
        last = feedback(folder)[-1]
        for name, columns in rows.items():
            places = list(zip(columns["row"], columns["example"], strict=True))
            assert len(set(places)) == len(places) == last.num_examples[name] > 1
            assert sum(columns["loss_sum_nats"]) == pytest.approx(last.loss_sum_nats[name], rel=1e-9)
            assert sum(columns["num_tokens"]) == last.num_tokens[name]


def test_plans_that_share_a_stage_train_it_once(config: Path, plan: list[Path]) -> None:
    assert train(config, DMT) == []
    mixed = [{"name": "mine", "domains": ["add", "copy"]}, {"name": "law-alone", "domains": ["law"]}]
    (trained,) = train(config, mixed, "name=mixed")
    assert trained.startswith("law-alone-")
    records = json.loads((config.parent / "runs" / "mixed" / "stages.json").read_text())
    assert Path(records[0]["folder"]) == plan[0]


def test_a_plan_stopped_inside_its_second_stage_ends_as_the_undisturbed_one(
    config: Path, plan: list[Path], tmp_path: Path
) -> None:
    elsewhere = (f"output_dir={tmp_path}", f"data.cache_dir={config.parent / 'runs' / 'token-stores'}")
    names = train(config, DMT, *elsewhere, stop=(2, 9))
    assert len(names) == 2 and not (tmp_path / "dmt" / "summary.json").exists()
    assert train(config, DMT, *elsewhere) == names[1:]
    stopped = tmp_path / "stages" / names[1]
    attempts = [line["message"] for line in read_lines(stopped / "events.jsonl") if line["kind"] == "attempt"]
    assert "starts from" in attempts[0] and "resumes after step 5" in attempts[1]
    assert losses(stopped) == losses(plan[1])
    assert read_lines(stopped / "samples.jsonl") == read_lines(plan[1] / "samples.jsonl")
    final = [path / "model" / "model.safetensors" for path in (stopped, plan[1])]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_fresh_is_a_new_optimizer_on_the_same_weights_and_kept_goes_on_with_the_moments(
    config: Path, plan: list[Path]
) -> None:
    """Fresh equals a run from the exported model (float32 loses nothing in it). Kept's first update already differs."""
    assert (adam_step(plan[0]), adam_step(plan[1])) == (12, 12)
    copy = config.with_name("from-model.yaml")
    settings = yaml.safe_load(config.read_text())
    second = json.loads((plan[1] / "config.json").read_text())
    settings |= {"name": "from-model", "model": settings["model"] | {"path": str(plan[0] / "model")}}
    for name, domain in settings["domains"].items():
        domain["fraction"] = second["domains"][name]["fraction"]
    copy.write_text(yaml.safe_dump(settings))
    processes(1).run(stage_cases.train_run, copy, [])
    assert losses(config.parent / "runs" / "from-model") == losses(plan[1])

    (trained,) = train(config, DMT | {"optimizer": "kept"}, "name=kept")
    kept = config.parent / "runs" / "stages" / trained
    assert adam_step(kept) == 24
    fresh_lines, kept_lines = (read_lines(path / "metrics.jsonl") for path in (plan[1], kept))
    assert fresh_lines[0]["loss_nats"] == kept_lines[0]["loss_nats"]  # before the first update
    assert fresh_lines[1]["loss_nats"] != kept_lines[1]["loss_nats"]  # after it


def test_another_strategy_goes_on_from_the_exported_model_and_the_same_one_from_its_parameters(
    config: Path, plan: list[Path]
) -> None:
    lora = {"domains": ["law"], "strategy": {"type": "lora", "rank": 4}}
    stages = [{"name": "full", "domains": ["add", "copy"]}, {"name": "lora", **lora}, {"name": "lora-again", **lora}]
    names = train(config, stages, "name=changing")
    assert len(names) == 2  # the first is the plan's
    first, second = (config.parent / "runs" / "stages" / name for name in names)
    assert losses(first)[0] == losses(plan[0])[-1]  # adapters begin at zero
    assert losses(second)[0] == losses(first)[-1]
    assert losses(second)[-1] != losses(second)[0]


def test_a_training_that_fails_stops_what_starts_from_it_and_nothing_else(config: Path, tmp_path: Path) -> None:
    """Five trainings: the domains alone, and sequential, which begins with `add` alone, then copy, then law."""
    given = [
        f"study={json.dumps(STUDY)}",
        "training.max_steps=4",
        f"output_dir={tmp_path}",
        f"data.cache_dir={config.parent / 'runs' / 'token-stores'}",
    ]
    settings = load_config(config, given)
    trainings = plan_trainings(build_cells(settings), PreparedData(Console(quiet=True)).stores)
    chains = {planned.cell.group + " " + planned.cell.subject: planned.chain for planned in trainings.cells}
    assert len(trainings.nodes) == 5
    first, second, third = (trainings.nodes[digest].find_folder() for digest in chains["sequential add+copy+law"])
    alone = {trainings.nodes[chains[f"single {name}"][0]].find_folder() for name in ("add", "copy", "law")}
    assert first in alone
    first.mkdir(parents=True)
    in_the_way = first / "weights"
    in_the_way.write_text("a file where the journal's folder should be")

    trained, told = processes(1).run(stage_cases.train_study, config, given)[0]
    assert set(trained) == {folder.name for folder in alone}
    lines = told.splitlines()
    assert lines[0] == "3 of 5 runs failed; the same command tries them again:"
    assert lines[1].startswith(f"  {first.name}: ") and str(in_the_way) in lines[1]
    assert lines[2:] == [
        f"  {second.name}: not started: {first.name}, which it starts from, has no result",
        f"  {third.name}: not started: {second.name}, which it starts from, has no result",
    ]
    assert _cells(tmp_path) == {"single copy k=1 seed=0", "single law k=1 seed=0"}
    assert (tmp_path / "dmt" / "study" / "report.html").exists()

    in_the_way.unlink()
    events = {folder: (folder / "events.jsonl").read_bytes() for folder in alone - {first}}
    assert processes(1).run(stage_cases.train_study, config, given)[0] == ([first.name, second.name, third.name], "")
    assert {folder: (folder / "events.jsonl").read_bytes() for folder in events} == events
    assert len(_cells(tmp_path)) == len(trainings.cells) == 4
    assert losses(third)[0] == losses(second)[-1]
    assert processes(1).run(stage_cases.train_study, config, given)[0] == ([], "")


def _cells(output_dir: Path) -> set[str]:
    """The cells that the study has results of."""
    return {line["cell"] for line in read_lines(output_dir / "dmt" / "study" / "results.jsonl")}
