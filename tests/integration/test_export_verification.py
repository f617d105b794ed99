"""A fault planted in an export stops it before it is committed, on every rank, and says what is wrong."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.families import family_model
from tests.integration import export_cases
from tests.integration.test_export import losses_of
from tests.integration.test_export_families import HEAD, LORA
from tests.integration.zero_cases import Case, training_of
from tests.integration.zero_processes import processes

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
FULL: dict[str, Any] = {"type": "full"}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no buffers": ("deepseek_v3", FULL, f"1 missing, first {BIAS}"),
    "a buffer lost": ("deepseek_v3", FULL, f"1 missing, first {BIAS}"),
    "a buffer altered": ("deepseek_v3", FULL, f"{BIAS} differs in the exported model (1 of "),
    "a weight altered": (
        "llama",
        FULL,
        "model.layers.0.self_attn.o_proj.weight differs in the exported model (1 of ",
    ),
    "a weight added": ("llama", FULL, "1 unexpected, first more"),
    "an adapter lost": ("llama", LORA, "is not in the exported adapter as it was trained (1 of 28 tensors)"),
    "an adapter altered": ("llama", LORA, "is not in the exported adapter as it was trained (1 of 28 tensors)"),
    "a merge skipped": ("llama", LORA, "self_attn.q_proj did not reach the merged model"),
    "still tied": (
        "llama, tied",
        LORA | HEAD | {"alpha": 512.0},
        "nats per token on ",
    ),
    "not a number": ("llama", FULL, "tensors are not finite, first model.embed_tokens.weight; no model was written"),
}


@pytest.mark.parametrize("fault", CASES)
def test_a_planted_fault_stops_the_commit(fault: str, tmp_path: Path) -> None:
    family, strategy, message = CASES[fault]
    case = Case(family_model(family), training_of(0, strategy=strategy))
    results = processes(2).run(export_cases.faulty_export, case, fault, tmp_path / "model")
    for error, left in results:
        assert message in error and ("ExportError" in error), error
        assert left == ["model"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")  # the one before it stays


def test_the_folder_of_the_good_export_is_the_older_one(tmp_path: Path) -> None:
    """What stays is the export of the step before, whole: its losses are those of no other moment."""
    case = Case(family_model("llama"), training_of(0, strategy=FULL))
    folders = [tmp_path / name / "model" for name in ("faulty", "good")]
    processes(2).run(export_cases.faulty_export, case, "a weight altered", folders[0])
    processes(2).run(export_cases.faulty_export, case, "not a number", folders[1])
    first, second = (losses_of(AutoModelForCausalLM.from_pretrained(folder)) for folder in folders)
    assert first == second
