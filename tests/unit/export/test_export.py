"""A run's model as a folder to give away, and what its card says."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from orchestrator.export.driver import export
from tests.runs import write_llama
from tests.unit.conftest import MakeFakeRun
from tests.unit.runs.test_verdict import CASES, finished, planted
from workers.export import ExportError
from workers.model.base_config import base_name

QUIET = Console(file=io.StringIO())


@pytest.fixture
def run(fake_run: MakeFakeRun) -> Path:
    written = fake_run(total_steps=40, every=20)
    write_llama(written.path / "model")
    return written.path


def test_the_model_is_exported_to_the_bit_and_loads(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(run, tmp_path / "out", "merged", is_best=False, console=QUIET)
    for path in (run / "model").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    written = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in loaded.state_dict().items() if name in written)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) > 200


def test_bfloat16_is_half_as_large_and_rounded_once(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "bf16", is_best=False, console=QUIET)
    before, after = (load_file(folder / "model.safetensors") for folder in (run / "model", tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.to(torch.bfloat16)), name


def test_an_adapter_goes_alone(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no adapter: the run's strategy is None, not lora"):
        export(run, tmp_path / "out", "adapter", is_best=False, console=QUIET)
    _write_adapter(run)
    export(run, tmp_path / "out", "adapter", is_best=False, console=QUIET)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md"} <= names and "model.safetensors" not in names
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoPeftModelForCausalLM" in card and "base_model: meta-llama/Llama-3.1-8B" in card


def _write_adapter(run: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run / "model")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = "meta-llama/Llama-3.1-8B"
    adapted.save_pretrained(run / "model" / "adapter", save_embedding_layers=False)


def _edit(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("kind", ["merged", "bf16"])
def test_a_result_that_is_not_whole_or_not_finite_is_not_given_away(
    run: Path, tmp_path: Path, kind: Literal["merged", "bf16"]
) -> None:
    weights = run / "model" / "model.safetensors"
    whole = weights.read_bytes()
    _edit(weights, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(ExportError, match=r"1 of \d+ tensors are not finite, first model.norm.weight"):
        export(run, tmp_path / "out", kind, is_best=False, console=QUIET)
    weights.write_bytes(whole)
    _edit(weights, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises((ExportError, ValueError), match=r"model\.norm\.weight"):
        export(run, tmp_path / "out", kind, is_best=False, console=QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == [run.name]


def test_a_conversion_that_loses_a_tensor_is_not_given_away(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    save = LlamaForCausalLM.save_pretrained

    def save_and_alter(model: Any, folder: Path) -> None:
        save(model, folder)
        _edit(folder / "model.safetensors", lambda tensors: tensors["model.norm.weight"][:1].mul_(1.01))

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_and_alter)
    with pytest.raises(ExportError, match=r"model\.norm\.weight differs in the exported model"):
        export(run, tmp_path / "out", "bf16", is_best=False, console=QUIET)


def test_half_an_adapter_is_not_given_away(run: Path, tmp_path: Path) -> None:
    _write_adapter(run)
    file = run / "model" / "adapter" / "adapter_model.safetensors"
    _edit(file, lambda tensors: tensors.pop(next(name for name in sorted(tensors) if "lora_B" in name)))
    with pytest.raises(ExportError, match=r"q_proj\.lora_A\.weight has no lora_B"):
        export(run, tmp_path / "out", "adapter", is_best=False, console=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("/data/models/llama-7b", "llama-7b"),
        ("models/llama-7b/", "llama-7b"),
        ("/runs/first/model", "first-model"),
    ],
)
def test_a_base_is_never_named_by_its_path(
    path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama-7b").mkdir(parents=True)
    assert base_name(path) == name


def test_the_card_says_what_was_seen(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    written = fake_run(total_steps=40, every=20)
    write_llama(written.path / "model")
    written.write_weights(41, reason="operator")
    export(written.path, tmp_path / "out", "merged", is_best=False, console=QUIET)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\nbase_model: Qwen/Qwen2.5-0.5B\ntags: [raymix]\n---\n")
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", card, re.MULTILINE))
    assert set(written.domains) <= set(rows)
    assert rows["math"].endswith(f"{written.losses[0]['math']:.3f} | {written.losses[40]['math']:.3f}")
    assert "* from step 41 on, versatune: math " in card
    assert "40 steps" in card and str(tmp_path) not in card


def test_the_card_of_the_best_model_has_its_losses(tmp_path: Path) -> None:
    written = planted(tmp_path, CASES["ended_worse"])
    finished(written)
    write_llama(written.path / "best")
    export(written.path, tmp_path / "out", "merged", is_best=True, console=QUIET)
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"^\| math \| .* \| 2\.000 \| 1\.500 \|$", card, re.MULTILINE) and ", at step 10;" in card


def test_what_cannot_be_exported_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no best/: it was removed, or .*; the model of the last step is .*/model$"
    ):
        export(run, tmp_path / "out", "merged", is_best=True, console=QUIET)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="already exists; name a new folder"):
        export(run, tmp_path / "out", "merged", is_best=False, console=QUIET)
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"the run has not finished: it has no summary\.json$"):
        export(run, tmp_path / "other", "merged", is_best=False, console=QUIET)


def test_a_model_that_is_worse_than_the_base_says_so_where_it_is_given_away(tmp_path: Path) -> None:
    """The card stands beside one model, so it does not speak of the folders of the run; the terminal does."""
    run, _ = finished(planted(tmp_path, CASES["worse_than_base"]))
    (run.path / "model").mkdir(exist_ok=True)
    write_llama(run.path / "model")
    told = io.StringIO()
    export(run.path, tmp_path / "out", "merged", is_best=False, console=Console(file=told, width=1000))
    card, (_, *said) = (tmp_path / "out" / "README.md").read_text(), told.getvalue().splitlines()
    assert "**Worse than the base model: at no evaluation was the mean loss below its initial 2.500;" in card
    assert "best/" not in card and "model/" not in card
    assert len(said) == 1 and said[0].startswith("Worse than the base model: ") and "there is no best/" in said[0]
