"""Checkpoints: going on from one is the undisturbed run, at any stage and world size; torn ones are never used."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.integration import checkpoint_cases, zero_cases
from tests.integration.zero_cases import LORA, Case, tiny_model, training_of
from tests.integration.zero_processes import processes
from tests.soak import few
from workers.engine.checkpoint import latest_checkpoint, read_best
from workers.engine.stored_tensors import StoredTensors

LAST = 8
VARIANTS = {
    **{f"stage {stage}": ({"zero_stage": stage}, "float32", {}) for stage in range(4)},
    **{f"stage {stage}, bf16": ({"zero_stage": stage}, "bfloat16", {}) for stage in range(4)},
    **{f"stage {stage}, lora": ({"zero_stage": stage}, "float32", {"strategy": LORA}) for stage in (0, 2, 3)},
    **{f"stage {stage}, lora, bf16": ({"zero_stage": stage}, "bfloat16", {"strategy": LORA}) for stage in (0, 1, 3)},
    **{
        f"stage {stage}, qlora, bf16": ({"zero_stage": stage}, "bfloat16", {"strategy": LORA | {"use_qlora": True}})
        for stage in (0, 2)
    },
    **{
        f"stage {stage}, bf16 sums": ({"zero_stage": stage, "gradient_dtype": "bfloat16"}, "bfloat16", {})
        for stage in range(4)
    },
}


def assert_equal_bits(result: dict[str, Any], expected: dict[str, Any]) -> None:
    assert result["losses"] == expected["losses"][4:]
    assert result["norms"] == expected["norms"][4:]
    assert result["final"] == expected["final"]
    for name, tensors in expected["masters"].items():
        for part, tensor in enumerate(tensors):
            assert torch.equal(result["masters"][name][part], tensor), (name, part)


@pytest.mark.parametrize("variant", few(VARIANTS, 4))
def test_going_on_is_the_undisturbed_run_bit_for_bit(variant: str, tmp_path: Path) -> None:
    deepspeed, dtype, changes = VARIANTS[variant]
    training = {**zero_cases.TRAINING, "deepspeed": deepspeed, **changes}
    undisturbed = processes(2).run(zero_cases.train, Case(tiny_model(), training, dtype, LAST, save={4: tmp_path}))
    resumed = processes(2).run(
        zero_cases.train, Case(tiny_model(), training, dtype, LAST, 5, load=tmp_path / "step-00000004")
    )
    assert_equal_bits(resumed[0], undisturbed[0])
    assert resumed[1]["state"] == {"step": 4, "note": "caller's own"}


@pytest.mark.parametrize(("dtype", "tolerance"), few([("float32", 1e-5), ("bfloat16", 1e-2)], 1))
@pytest.mark.parametrize(
    ("saved", "loaded"),
    few(
        [((2, 3), (1, 3)), ((1, 2), (2, 2)), ((2, 2), (2, 3)), ((2, 3), (1, 0)), ((1, 0), (2, 1)), ((2, 1), (1, 2))], 3
    ),
)
def test_another_world_size_or_stage_goes_on(
    saved: tuple[int, int], loaded: tuple[int, int], dtype: str, tolerance: float, tmp_path: Path
) -> None:
    case = Case(tiny_model(), training_of(saved[1]), dtype, LAST, save={4: tmp_path})
    undisturbed = processes(saved[0]).run(zero_cases.train, case)[0]
    case = Case(tiny_model(), training_of(loaded[1]), dtype, LAST, 5, load=tmp_path / "step-00000004")
    resumed = processes(loaded[0]).run(zero_cases.train, case)[0]
    np.testing.assert_allclose(resumed["losses"], undisturbed["losses"][4:], rtol=0, atol=tolerance)
    np.testing.assert_allclose(resumed["final"], undisturbed["final"], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("saved", "loaded"), few([(0, 3), (1, 0), (3, 2)], 2))
def test_a_checkpoint_of_an_older_raymix_goes_on_bit_for_bit(saved: int, loaded: int, tmp_path: Path) -> None:
    """Format 1: rank 0 wrote whole tensors, in several files."""
    case = Case(tiny_model(), training_of(saved), last_step=4, save={4: tmp_path})
    found = processes(2).run(zero_cases.train, case)[0]
    write_format_1(tmp_path / "older" / "step-00000004", found["masters"], found["adam_step"])
    case = Case(tiny_model(), training_of(loaded), last_step=LAST, first_step=5)
    new, old = (
        processes(2).run(zero_cases.train, replace(case, load=folder / "step-00000004"))
        for folder in (tmp_path, tmp_path / "older")
    )
    assert old[0]["losses"] == new[0]["losses"] and old[0]["final"] == new[0]["final"]
    assert old[1]["state"] == {"step": 4, "note": "caller's own"}


def write_format_1(path: Path, whole: dict[str, list[torch.Tensor]], adam_step: int) -> None:
    path.mkdir(parents=True)
    tensors = {}
    for number, (name, parts) in enumerate(whole.items()):
        file = f"trainable-{number % 3:05d}.safetensors"
        tensors[name] = {"file": file, "shape": list(parts[0].shape)}
    for file in {entry["file"] for entry in tensors.values()}:
        save_file(
            {
                f"{kind}/{name}": part
                for name, parts in whole.items()
                for kind, part in zip(("master", "exp_avg", "exp_avg_sq"), parts, strict=True)
                if tensors[name]["file"] == file
            },
            path / file,
        )
    state = {"step": 4, "note": "caller's own"}
    content = {"format": 1, "step": 4, "adam_step": adam_step, "zero_stage": 0, "world_size": 2, "tensors": tensors}
    (path / "state.json").write_text(json.dumps(content | {"state": state}))
    files = {
        file.name: {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in path.iterdir()
    }
    (path / "manifest.json").write_text(json.dumps({"files": files}))


@pytest.mark.parametrize("stage", range(4))
def test_ranks_write_equal_parts_that_are_deepspeeds_own_tensors(stage: int, tmp_path: Path) -> None:
    """Each element is written once, by one rank, and together they are what DeepSpeed gathers."""
    case = Case(tiny_model(), training_of(stage), last_step=4, save={4: tmp_path})
    whole = processes(2).run(zero_cases.train, case)[0]["masters"]
    folder = tmp_path / "step-00000004"
    described = json.loads((folder / "state.json").read_text())["tensors"]
    stored = StoredTensors(folder, described)
    for name, tensors in whole.items():
        assert sum(length for _, _, length in described[name]["pieces"]) == tensors[0].numel()
        for part, tensor in zip(("master", "exp_avg", "exp_avg_sq"), tensors, strict=True):
            assert torch.equal(stored.whole(part, name), tensor), (part, name)
    for kind in ("masters", "moments"):
        sizes = [(folder / f"{kind}-{rank:05d}.safetensors").stat().st_size for rank in range(2)]
        assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.parametrize("stage", few(range(4), 2))
def test_training_goes_on_while_a_checkpoint_is_written(stage: int, tmp_path: Path) -> None:
    """It is absent until the last rank has written, whatever the others have, and holds the step it was begun at."""
    case = Case(tiny_model(), training_of(stage), last_step=LAST)
    seen, losses = processes(2).run(checkpoint_cases.train_while_writing, case, tmp_path)[0]
    assert seen == [[".step-00000004.tmp"], ["step-00000004"]]
    resumed = processes(2).run(zero_cases.train, replace(case, first_step=5, load=tmp_path / "step-00000004"))[0]
    assert resumed["losses"] == losses[4:]


def test_another_model_is_refused_on_all_ranks_with_a_name(tmp_path: Path) -> None:
    processes(2).run(zero_cases.train, Case(tiny_model(), training_of(2), last_step=4, save={4: tmp_path}))
    case = Case(tiny_model(), training_of(2, strategy=LORA), load=tmp_path / "step-00000004")
    for error in processes(2).run(zero_cases.error_of_training, case):
        assert "is for another model or strategy" in error
        assert "absent in the checkpoint" in error


@pytest.mark.parametrize(("fault", "rank"), few([("file", 1), ("file", 0), ("state", 0), ("rename", 0)], 2))
def test_a_disk_error_is_raised_on_all_ranks_and_keeps_the_previous_checkpoint(
    fault: str, rank: int, tmp_path: Path
) -> None:
    first = Case(tiny_model(), training_of(2), last_step=4, save={4: tmp_path})
    processes(2).run(zero_cases.train, first)
    second = Case(tiny_model(), training_of(2), last_step=5, save={5: tmp_path})
    errors = processes(2).run(checkpoint_cases.save_on_a_failing_disk, second, fault, rank)
    assert all("No space left" in error for error in errors)
    warnings: list[str] = []
    assert latest_checkpoint(tmp_path, warnings.append) == tmp_path / "step-00000004"
    assert warnings == []
    processes(2).run(zero_cases.train, Case(tiny_model(), training_of(2), last_step=4, save={3: tmp_path, 4: tmp_path}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_old_checkpoints_go_after_the_new_one_is_there(tmp_path: Path) -> None:
    case = Case(tiny_model(), training_of(1), last_step=4, save={step: tmp_path for step in (1, 2, 3, 4)})
    processes(1).run(zero_cases.train, case)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    manifest = json.loads((tmp_path / "step-00000004" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"state.json", "masters-00000.safetensors", "moments-00000.safetensors"}


def test_the_best_model_is_links_that_outlive_its_checkpoint(tmp_path: Path) -> None:
    best = processes(1).run(checkpoint_cases.keep_the_best, Case(tiny_model(), training_of(1), last_step=2), tmp_path)[
        0
    ]
    assert best["state"] == {"loss_nats": 1.5} and best["step"] == 1
    assert best["linked"] == [2, 1]  # names of its masters: while there is the checkpoint, and after the next one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-00000002"]
    masters = tmp_path / "best" / "masters-00000.safetensors"
    masters.write_bytes(masters.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"the best model in .* is damaged: masters-00000.safetensors has "):
        read_best(tmp_path)
