"""The parts of `make gpu`, on the CPU with tiny models: that they run, and that they find faults."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu_model import TINY
from benchmarks.gpu_parts import Row, measure_kernels, measure_losses, measure_qlora, measure_training
from tests.integration import gpu_faults
from tests.integration.zero_processes import processes


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.what: row for row in rows}


def test_losses_of_all_stages_are_those_of_float32(tmp_path: Path) -> None:
    rows = processes(1).run(measure_losses, TINY, tmp_path)[0]
    assert len(rows) == 5
    assert [row.is_right for row in rows] == [True] * 5, rows


def test_a_wrong_gradient_is_found(tmp_path: Path) -> None:
    rows = processes(1).run(gpu_faults.losses_with_gradients_of_wrong_sign, TINY, tmp_path)[0]
    assert [row.is_right for row in rows] == [True] + [False] * 4, rows


def test_packing_is_proved_with_every_kernel_that_is_here(tmp_path: Path) -> None:
    rows = by_name(processes(1).run(measure_kernels, TINY, tmp_path)[0])
    for kernel in ("auto", "sdpa"):
        row = rows[f"packed examples with attention: {kernel}"]
        assert row.is_right and row.measured.startswith("sdpa, by positions: 0.0"), row
        assert rows[f"losses with attention: {kernel} against float32"].is_right
    assert "not here: model.liger: " in rows["packed examples with liger: True"].measured
    for kernel in ("flash_attention_3", "flash_attention_2", "flex_attention"):
        row = rows[f"packed examples with attention: {kernel}"]
        assert row.is_right is None and "it needs a GPU" in row.measured


def test_training_on_weights_in_four_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    rows = processes(1).run(measure_qlora, replace(TINY, hidden=64, neurons=128), tmp_path)[0]
    assert [row.is_right for row in rows] == [True, None, True], rows


def test_speed_memory_and_a_resumed_engine(tmp_path: Path) -> None:
    rows = processes(1).run(measure_training, TINY, tmp_path, 1000.0)[0]
    speed, utilisation, memory, stall, bits, losses = rows
    assert speed.measured.endswith("tokens/s") and speed.is_right is None
    assert utilisation.measured.endswith("% of 1,000 TFLOP/s") and utilisation.is_right is False
    assert "MiB, estimated" in memory.measured
    assert " s of " in stall.measured
    assert (bits.is_right, losses.is_right) == (True, True), rows


@pytest.mark.soak
def test_a_run_that_is_stopped_and_resumed(tmp_path: Path) -> None:
    rows: Any = gpu.measure_run(tmp_path, num_gpus=0)
    assert [row.is_right for row in rows] == [True, True], rows
