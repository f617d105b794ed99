"""Sequences in slices over two ranks: a run is what it is with whole sequences."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.tiny_families import build
from tests.integration import slices_cases, zero_cases
from tests.integration.zero_cases import Case, tiny_model, training_of
from tests.integration.zero_processes import processes
from tests.runs import read_lines, write_run
from tests.soak import few

NUM_STEPS = 5
# Rows are of up to 40 tokens: a window of 6 is shorter than a slice, one of 24 longer than a slice.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "one key-value head": ("qwen3", {"num_key_value_heads": 1}),
    "windows": ("mistral", {"sliding_window": 6}),
    "windows over slices": ("mistral", {"sliding_window": 24}),
    "windows and soft-capping": ("gemma2", {"sliding_window": 6, "attn_logit_softcapping": 1.0}),
}


@functools.cache
def model_of(name: str) -> Path:
    if name == "llama":
        return tiny_model()
    family, changes = FAMILIES[name]
    config = build(family).config
    config.update(changes)
    folder = Path(tempfile.mkdtemp(prefix="raymix-slices-"))
    torch.manual_seed(1)
    model = type(build(family))(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.15)
    model.save_pretrained(folder)
    return folder


def case_of(name: str, zero_stage: int, **changes: Any) -> Case:
    attention = "eager" if "soft-capping" in name else "auto"
    return Case(model_of(name), training_of(zero_stage, **changes), last_step=NUM_STEPS, attention=attention)


@functools.cache
def whole(name: str, way: str | None = None) -> dict[str, Any]:
    """The training with whole sequences, each rank with half of the rows."""
    return processes(2).run(zero_cases.train, replace(case_of(name, 0), way=way))[0]


def assert_same(results: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Adam enlarges the rounding of gradients that are nearly zero: weights may differ by a thousandth of a step of
    1e-3, on average. It hides from the weights how gradients were clipped, but not from its first moments."""
    for result in results:
        np.testing.assert_allclose(result["losses"], expected["losses"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(result["norms"], expected["norms"], rtol=1e-5)
        for key in ("final", "final_alone"):
            np.testing.assert_allclose(result[key], expected[key], rtol=0, atol=1e-5)
        for name, (master, _, _) in expected["masters"].items():
            assert float((result["masters"][name][0] - master).square().mean().sqrt()) < 1e-6, name
        found, wanted = first_moments(result), first_moments(expected)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def first_moments(result: dict[str, Any]) -> torch.Tensor:
    return torch.cat([tensors[1].flatten() for _, tensors in sorted(result["masters"].items())])


@pytest.mark.parametrize("zero_stage", few([3, 2, 1, 0], 2))
def test_packed_rows_train_as_whole_ones_and_are_clipped_alike(zero_stage: int) -> None:
    clipped = whole("llama")
    assert min(clipped["norms"]) > 2 * zero_cases.TRAINING["max_grad_norm"]
    assert_same(processes(2).run(zero_cases.train, case_of("llama", zero_stage, sequence_parallel=2)), clipped)


@pytest.mark.parametrize("name", few(FAMILIES, 3))
def test_families_do(name: str) -> None:
    assert_same(processes(2).run(zero_cases.train, case_of(name, 2, sequence_parallel=2)), whole(name))


@pytest.mark.parametrize(
    "changes", [{"activation_checkpointing": True}, {"micro_batch_size": 1}, {"micro_batch_size": 8}]
)
def test_passes_of_other_sizes_do(changes: dict[str, Any]) -> None:
    sliced = case_of("windows", 3, sequence_parallel=2, **changes)
    assert_same(processes(2).run(zero_cases.train, sliced), whole("windows"))


@pytest.mark.parametrize(("way", "zero_stage"), [("separate", 3), ("mask", 0)])
def test_other_ways_of_keeping_examples_apart_do(way: str, zero_stage: int) -> None:
    sliced = replace(case_of("qwen3", zero_stage, sequence_parallel=2), way=way)
    assert_same(processes(2).run(zero_cases.train, sliced), whole("qwen3"))


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_losses_in_chunks_do(zero_stage: int) -> None:
    sliced = replace(case_of("llama", zero_stage, sequence_parallel=2), targets_in_chunk=5)
    assert_same(processes(2).run(zero_cases.train, sliced), whole("llama"))


def test_the_proof_of_isolation_measures_slices() -> None:
    for way, difference in processes(2).run(slices_cases.prove, case_of("windows", 0, sequence_parallel=2)):
        assert way == "positions"
        assert difference is not None and difference < 1e-5


@pytest.mark.parametrize("family", ["mamba2", "qwen3_next", "gpt_oss"])
def test_a_model_that_cannot_be_cut_is_refused_with_a_reason(family: str, tmp_path: Path) -> None:
    """State-space layers, linear attention, and attention with a weight for each head."""
    build(family).save_pretrained(tmp_path)
    case = Case(tmp_path, training_of(0, sequence_parallel=2, router_loss=False))
    for told, _ in processes(2).run(slices_cases.prove, case):
        assert told.startswith("training.sequence_parallel: 2 slices of a sequence are not right for this model")
        assert told.endswith("; set it to 1")


def test_evaluations_measure_every_example_once() -> None:
    losses, _, _ = processes(2).run(zero_cases.measure, case_of("llama", 0), "all")[0]
    for sliced, _, _ in processes(2).run(zero_cases.measure, case_of("llama", 3, sequence_parallel=2), "all"):
        for domain, expected in losses.items():
            np.testing.assert_allclose(sliced[domain].loss_sum_nats_E, expected.loss_sum_nats_E, atol=1e-5)


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_rank_keeps_its_part_of_the_activations(is_packed: bool) -> None:
    """Beside it, in each of two layers, the results of attention as they were exchanged, and a whole mask if any."""
    length, width, hidden_size = 30, 4, 64  # of 29 tokens
    (whole_row,) = processes(1).run(slices_cases.bytes_kept, case_of("llama", 0), False)
    expected = whole_row / 29 * (length / 2) + 2 * width * (length / 2) * hidden_size
    expected += 2 * width * length**2 if is_packed else 0
    sliced = case_of("llama", 0, sequence_parallel=2)
    assert processes(2).run(slices_cases.bytes_kept, sliced, is_packed) == [pytest.approx(expected)] * 2


def test_a_run_draws_measures_and_exports_the_same_and_resumes_with_another_number(tmp_path: Path) -> None:
    config = write_run(
        tmp_path, training__max_steps=8, training__checkpoint_every=4, evaluation={"every": 4, "max_rows": 8}
    )
    ranks, sliced = processes(2), "training.sequence_parallel=2"
    ranks.run(slices_cases.train_run, config, ["name=whole"])
    ranks.run(slices_cases.train_run, config, ["name=sliced", sliced])
    ranks.run(slices_cases.train_run, config, ["name=resumed", sliced], 8)
    ranks.run(slices_cases.train_run, config, ["name=resumed"])
    runs = tmp_path / "runs"
    metrics = {name: read_lines(runs / name / "metrics.jsonl") for name in ("whole", "sliced", "resumed")}
    for name in ("sliced", "resumed"):
        assert rows_of(runs / name) == rows_of(runs / "whole")
        for line, expected in zip(metrics[name], metrics["whole"], strict=True):
            assert line["num_tokens"] == expected["num_tokens"]
            assert line["num_loss_tokens"] == expected["num_loss_tokens"]
            assert line["domain_loss_nats"] == pytest.approx(expected["domain_loss_nats"], abs=1e-4)
        assert evaluation_of(runs / name) == pytest.approx(evaluation_of(runs / "whole"), abs=1e-4)
        assert (runs / name / "model" / "config.json").exists()


def rows_of(run: Path) -> dict[tuple[int, str], list[int]]:
    """The rows of each step and domain, in the order of the global batch."""
    rows: dict[tuple[int, str], list[int]] = {}
    for line in read_lines(run / "samples.jsonl"):
        rows.setdefault((line["step"], line["domain"]), []).extend(line["rows"])
    return rows


def evaluation_of(run: Path) -> list[float]:
    import json

    domains = json.loads((run / "evaluation.json").read_text())["domains"]
    return [loss for domain in domains.values() for loss in domain["loss_sum_nats"]]
