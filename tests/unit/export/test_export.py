"""A run's model as a folder to give away, and what its card says."""

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from orchestrator.export.driver import export
from tests.runs import write_llama
from tests.unit.conftest import MakeFakeRun

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
    with pytest.raises(ValueError, match="holds no adapter: the run's strategy is None, not lora"):
        export(run, tmp_path / "out", "adapter", is_best=False, console=QUIET)
    (run / "model" / "adapter").mkdir()
    save_file({"a": torch.ones(2)}, run / "model" / "adapter" / "adapter_model.safetensors")
    export(run, tmp_path / "out", "adapter", is_best=False, console=QUIET)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md"} <= names and "model.safetensors" not in names
    assert "AutoPeftModelForCausalLM" in (tmp_path / "out" / "README.md").read_text()


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


def test_what_cannot_be_exported_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"best: there is no such model; was the run made to keep one"):
        export(run, tmp_path / "out", "merged", is_best=True, console=QUIET)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="is there already; name a new folder"):
        export(run, tmp_path / "out", "merged", is_best=False, console=QUIET)
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"no summary\.json; give the folder of a run that has finished"):
        export(run, tmp_path / "other", "merged", is_best=False, console=QUIET)
