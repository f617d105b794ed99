"""Base folders that are not quite in order, at the ZeRO stages: all of them see what plain transformers sees."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.integration import zero_cases
from tests.integration.plain_training import train_in_plain_torch
from tests.integration.test_export import losses_of
from tests.integration.zero_cases import LORA, Case, tiny_model, training_of
from tests.integration.zero_processes import processes
from tests.soak import few

LAST = 4


def changed_model(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """A copy of the tiny model with other weights and another configuration."""
    shutil.copytree(tiny_model(), folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    stored = load_file(folder / "model.safetensors") | (weights or {})
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("world_size", few([2, 1], 1))
@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("is_same", [False, True], ids=["two matrices", "one matrix twice"])
def test_a_tie_flag_holds_where_the_files_do_not_contradict_it(
    zero_stage: int, world_size: int, is_same: bool, tmp_path: Path
) -> None:
    embeddings = load_file(tiny_model() / "model.safetensors")["model.embed_tokens.weight"]
    head = {"lm_head.weight": embeddings.clone()} if is_same else {}
    base = changed_model(tmp_path / "base", head, tie_word_embeddings=True)
    plain = train_in_plain_torch(base, LAST)
    exported = tmp_path / "exported"
    case = Case(base, training_of(zero_stage), last_step=LAST, export={LAST: exported})
    result = processes(world_size).run(zero_cases.train, case)[0]
    np.testing.assert_allclose(result["losses"], plain["losses"], rtol=0, atol=1e-5)
    assert json.loads((exported / "config.json").read_text())["tie_word_embeddings"] is is_same
    assert ("lm_head.weight" in result["masters"]) is not is_same
    assert losses_of(AutoModelForCausalLM.from_pretrained(exported)) == pytest.approx(result["final"], abs=1e-5)


def test_merging_an_adapter_keeps_two_matrices_apart(tmp_path: Path) -> None:
    base = changed_model(tmp_path / "base", tie_word_embeddings=True)
    adapters = {"strategy": {**LORA, "alpha": 256.0, "dropout": 0.0}}
    case = Case(base, training_of(3, **adapters), last_step=LAST, export={LAST: tmp_path / "exported"})
    result = processes(2).run(zero_cases.train, case)[0]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert losses_of(merged) == pytest.approx(result["final"], abs=1e-5)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_weight_that_is_no_number_is_told_on_every_rank(zero_stage: int, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    damaged = load_file(tiny_model() / "model.safetensors")[name]
    damaged[0, 0] = float("nan")  # in the first rank's part of it, under ZeRO-3
    case = Case(changed_model(tmp_path / "base", {name: damaged}), training_of(zero_stage))
    for error in processes(2).run(zero_cases.error_of_training, case):
        assert "1 of its weights contain NaN or infinity" in error and name in error


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_smaller_model_than_the_files_hold_is_not_trained(zero_stage: int, tmp_path: Path) -> None:
    case = Case(changed_model(tmp_path / "base", num_hidden_layers=1), training_of(zero_stage))
    for error in processes(2).run(zero_cases.error_of_training, case):
        assert "12 weights have no place" in error and "model.layers.1." in error
