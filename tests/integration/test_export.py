"""Exported folders: from_pretrained gives back the trained model, and training goes on as if nothing was exported."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration import export_cases, zero_cases
from tests.integration.plain_training import example_nats
from tests.integration.zero_cases import LORA, Case, tiny_model, training_of
from tests.integration.zero_processes import processes
from tests.runs import raymix, write_run
from tests.soak import few

LAST = 4
ADAPTERS = {"strategy": {**LORA, "alpha": 256.0, "dropout": 0.0}}  # so strong that four steps move the loss
CASES: dict[str, tuple[int, str, dict[str, Any], bool]] = {
    "stage 0": (0, "float32", {}, False),
    "stage 2, bf16": (2, "bfloat16", {}, False),
    "stage 3": (3, "float32", {}, False),
    "stage 3, bf16, tied": (3, "bfloat16", {}, True),
    "stage 2, lora": (2, "float32", ADAPTERS, False),
    "stage 3, lora": (3, "float32", ADAPTERS, False),
    "stage 3, lora, bf16, tied": (3, "bfloat16", ADAPTERS, True),
}


def losses_of(model: Any, alone: bool = False) -> list[float]:
    """The loss of the tests' last batch with a reloaded model; `alone`: of the first example of each row."""
    batch = zero_cases.global_batch(99)
    if alone:
        batch = zero_cases.first_examples(batch)
    with torch.no_grad():
        nats = [float(sum(example_nats(model.eval(), batch, row))) for row in range(8)]
    return [
        sum(n for n, d in zip(nats, batch.domain_B, strict=True) if d == domain)
        / int(batch.loss_mask_BL[batch.domain_B == domain].sum())
        for domain in range(zero_cases.NUM_DOMAINS)
    ]


@pytest.mark.parametrize("name", few(CASES, 4))
def test_reloaded_model_is_the_trained_one(name: str, tmp_path: Path) -> None:
    stage, dtype, changes, tied = CASES[name]
    folder = tmp_path / "model"
    case = Case(tiny_model(tied), training_of(stage, **changes), dtype, LAST, export={2: folder, LAST: folder})
    trained = processes(2).run(zero_cases.train, case)[0]
    undisturbed = processes(2).run(
        zero_cases.train, Case(tiny_model(tied), training_of(stage, **changes), dtype, LAST)
    )[0]
    assert trained["losses"] == undisturbed["losses"]
    assert trained["final"] == undisturbed["final"]

    tolerance = 1e-5 if dtype == "float32" else 0.01
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == f"torch.{dtype}"
    assert model.config.use_cache
    assert losses_of(model) == pytest.approx(trained["final"], abs=tolerance)
    assert losses_of(AutoModelForCausalLM.from_pretrained(tiny_model(tied))) != pytest.approx(
        trained["final"], abs=0.005
    )
    if "strategy" in changes:
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model(tied)), folder / "adapter")
        assert losses_of(adapted) == pytest.approx(trained["final"], abs=tolerance)
    else:
        for key, p in model.named_parameters():
            assert torch.equal(p.detach().float(), trained["masters"][key][0].to(p.dtype).float()), key
    assert AutoTokenizer.from_pretrained(folder).chat_template == zero_cases.tokenizer().chat_template
    assert not list(folder.rglob("*.bin"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "name", few(["stage 0", "stage 2, bf16", "stage 3, bf16, tied", "stage 3, lora, bf16, tied"], 2)
)
def test_a_model_kept_by_its_masters_is_exported_later_as_it_would_have_been_then(name: str, tmp_path: Path) -> None:
    stage, dtype, changes, tied = CASES[name]
    case = Case(tiny_model(tied), training_of(stage, **changes), dtype)
    kept = processes(2).run(export_cases.export_now_and_later, case, tmp_path)[0]
    masters = [f"masters-{rank:05d}.safetensors" for rank in range(2)]
    assert kept == ["best", "manifest.json", *masters, "state.json"]  # and no moments
    now, later = (sorted(path for path in (tmp_path / part).rglob("*") if path.is_file()) for part in ("now", "later"))
    assert len(now) > 3
    for path, other in zip(now, later, strict=True):
        assert path.relative_to(tmp_path / "now") == other.relative_to(tmp_path / "later")
        assert path.read_bytes() == other.read_bytes(), path.name


@pytest.mark.parametrize("name", few(["stage 2, bf16", "stage 3, lora, bf16, tied", "stage 0"], 2))
def test_the_best_model_of_a_run_that_was_cut_off_is_exported_as_its_end_would_have(name: str, tmp_path: Path) -> None:
    stage, dtype, changes, _ = CASES[name]
    settings = {"strategy": {"type": "full"}} | changes
    config = write_run(
        tmp_path,
        mixing={"type": "uniform"},
        model__dtype=dtype,
        training__max_steps=6,
        training__checkpoint_every=3,
        training__strategy=settings["strategy"],
        training__deepspeed__zero_stage=stage,
        evaluation={"every": 2, "max_rows": 8},
    )
    processes(2).run(export_cases.train_and_keep_best, config)
    run = tmp_path / "runs" / "small"
    (run / "best").rename(tmp_path / "as at the end")
    shutil.rmtree(run / "model")
    refused = raymix("export", run, tmp_path / "out")
    assert (
        refused.returncode
        and "has not finished" in refused.stderr
        and "--best gives" in " ".join(refused.stderr.split())
    )
    moved = run.rename(tmp_path / "moved")
    done = raymix("export", moved, tmp_path / "out", "--best")
    assert done.returncode == 0, done.stderr
    for path in (path for path in (tmp_path / "as at the end").rglob("*") if path.is_file()):
        copy = moved / "best" / path.relative_to(tmp_path / "as at the end")
        assert copy.read_bytes() == path.read_bytes(), path.name
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (moved / "best" / "model.safetensors").read_bytes()
    assert "The run was cut off" in (tmp_path / "out" / "README.md").read_text()
