"""Signals on real engines: against plain transformers, over ranks and ZeRO stages, and through a whole training."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.folder import RunFolder
from tests.integration import signal_cases
from tests.integration.signal_cases import NUM_STEPS, SIGNALS, STEPS_MEASURED
from tests.integration.zero_cases import Case, tiny_model, training_of
from tests.integration.zero_processes import processes
from tests.runs import read_lines, write_run

CASES = [(0, 1, 1), (0, 2, 1), (3, 2, 1), (3, 2, 2)]
every_case = pytest.mark.parametrize(("zero_stage", "world_size", "slices"), CASES)


@functools.cache
def measured(
    zero_stage: int, world_size: int, slices: int = 1, dtype: str = "float32"
) -> tuple[list[dict[str, Any]], Path]:
    """What every rank measured, and the folder of the run."""
    folder = Path(tempfile.mkdtemp(prefix="raymix-signals-"))
    case = Case(tiny_model(), training_of(zero_stage, max_grad_norm=0.0, sequence_parallel=slices), dtype=dtype)
    return processes(world_size).run(signal_cases.measure_signals, case, folder), folder


def close(values: dict[str, dict[str, float]], abs_tolerance: float) -> dict[str, Any]:
    return {name: pytest.approx(by_domain, abs=abs_tolerance, rel=0) for name, by_domain in values.items()}


@every_case
def test_they_equal_a_plain_computation_on_unpacked_examples(zero_stage: int, world_size: int, slices: int) -> None:
    (first, *_), folder = measured(zero_stage, world_size, slices)
    for step, values in zip(STEPS_MEASURED, first["trained"], strict=True):
        plain = signal_cases.plain_signals(tiny_model(), folder / "model", step)
        assert list(values) == list(SIGNALS)
        assert values == close(plain, 1e-4)
    base = signal_cases.plain_signals(tiny_model(), tiny_model(), 0)
    assert first["at_base"][0] == close(base, 1e-4)


@every_case
def test_all_ranks_hold_the_same_values(zero_stage: int, world_size: int, slices: int) -> None:
    results, _ = measured(zero_stage, world_size, slices)
    measured_values = [{key: value for key, value in result.items() if key != "errors"} for result in results]
    assert all(values == measured_values[0] for values in measured_values)
    assert all(len(result["errors"]) == 2 for result in results)  # where one rank refuses, all do


def test_the_world_size_and_the_stage_change_nothing() -> None:
    reference = measured(*CASES[0])[0][0]
    for case in CASES[1:]:
        for values, expected in zip(measured(*case)[0][0]["trained"], reference["trained"], strict=True):
            assert values == close(expected, 1e-4)


@pytest.mark.parametrize("case", [*((*c, "float32") for c in CASES), (2, 2, 1, "bfloat16")])
def test_the_untouched_models_ratio_is_exactly_one(case: tuple[int, int, int, str]) -> None:
    result = measured(*case)[0][0]
    for values in result["at_base"]:
        for signal in ("perplexity_ratio", "perplexity_ratio:sequence"):
            assert set(values[signal].values()) == {1.0}
    trained = result["trained"][0]["perplexity_ratio"]
    assert all(0.0 < ratio < 2.0 and ratio != 1.0 for ratio in trained.values())


@every_case
def test_a_run_that_goes_on_compares_with_the_same_base_model(zero_stage: int, world_size: int, slices: int) -> None:
    result = measured(zero_stage, world_size, slices)[0][0]
    assert result["resumed"] == result["trained"][0]
    missing, other = result["errors"]
    assert f"after {NUM_STEPS} steps they can no longer be measured" in missing
    assert "for other examples than this run's" in other


@every_case
def test_measuring_the_base_model_is_noted_once_before_step_1(zero_stage: int, world_size: int, slices: int) -> None:
    """By one rank, and not again by the meter that found the numbers."""
    _, folder = measured(zero_stage, world_size, slices)
    (event,) = read_lines(folder / "events.jsonl")
    assert (event["step"], event["kind"]) == (0, "signals")
    num_examples = signal_cases.signal_pool().num_examples
    assert event["message"].startswith(f"the base model's losses on {num_examples} examples took ")


def test_a_signal_alone_is_what_it_is_among_others() -> None:
    result = measured(3, 2, 1)[0][0]
    assert result["similarity_alone"] == {"hidden_similarity": result["trained"][0]["hidden_similarity"]}


def test_a_training_answers_to_them_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    config = write_run(
        tmp_path,
        mixing={"type": "mixture_of_skills", "reward": "perplexity", "target": "law"},
        training__max_steps=8,
        training__checkpoint_every=4,
        evaluation={"every": 2, "max_rows": 4, "signal_examples": 12, "best": None},
        cluster__num_workers=1,
    )
    processes(1).run(signal_cases.train_twice, config)
    runs = [RunFolder(tmp_path / "runs" / name) for name in ("whole", "ended")]
    for run in runs:
        run.refresh()
        assert [feedback.step for feedback in run.feedback] == [0, 2, 4, 6, 8]
        assert [weights.effective_step for weights in run.weights] == [1, 3, 5, 7, 9]
    assert [w.shares for w in runs[0].weights] == [w.shares for w in runs[1].weights]
    assert [f.signals for f in runs[0].feedback] == [f.signals for f in runs[1].feedback]
    assert set(runs[0].feedback[0].signals["perplexity_ratio"].values()) == {1.0}
    shares = runs[0].weights[-1].shares
    assert shares["law"] == max(shares.values()) and shares["law"] > 1 / 3
    last = read_lines(tmp_path / "runs" / "whole" / "mixing.jsonl")[-1]["values"]
    assert last["signal_seconds"] > 0 and last["reward/add"] == runs[0].feedback[-1].signals["perplexity_ratio"]["add"]
