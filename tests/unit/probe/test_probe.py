"""Hidden states of a real, tiny model, and the verb over several models."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.probe.driver import probe
from orchestrator.probe.geometry import layer_index, mean_hidden_states
from tests.runs import write_llama
from workers.config.model import ModelConfig
from workers.model.loading import load_model
from workers.model.tokenizer import load_tokenizer


def write_model(folder: Path, seed: int) -> ModelConfig:
    write_llama(folder, seed, hidden_size=16, num_hidden_layers=4, initializer_range=0.2)
    return ModelConfig(path=str(folder), dtype="float32")


def read_config(folder: Path) -> RunConfig:
    for name, word in (("law", "court"), ("code", "{return}"), ("math", "1+1=2")):
        rows = [{"text": f"{number} " + f"{word} " * (2 + number % 5)} for number in range(60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig.model_validate(
        {
            "name": "small",
            "output_dir": str(folder / "runs"),
            "model": {"path": str(folder / "base"), "dtype": "float32"},
            "domains": {name: {"eval": str(folder / f"{name}.jsonl")} for name in ("law", "code")}
            | {"math": {"train": str(folder / "math.jsonl"), "eval_fraction": 0.5}},
            "mixing": {"type": "uniform"},
            "training": {"max_steps": 1},
        }
    )


def test_states_are_means_over_the_texts_own_tokens(tmp_path: Path) -> None:
    config = write_model(tmp_path, 0)
    texts = ["a", "a longer text", "one that is longer than the limit"]
    states_NH = mean_hidden_states(config, texts, "0.5", 20)
    tokenizer, model = load_tokenizer(config), load_model(config).eval()
    for text, state_H in zip(texts, states_NH, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:20]
        with torch.inference_mode():
            hidden = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states[2][0]
        np.testing.assert_allclose(state_H, hidden.mean(dim=0).numpy(), atol=1e-5)


def test_layers_are_named_by_fraction_or_number() -> None:
    assert [layer_index(layer, 8) for layer in ("0.5", "1.0", "0.0", "8", "0", "3")] == [4, 8, 0, 8, 0, 3]
    for layer in ("9", "-1", "1.5", "middle", "nan", "."):
        with pytest.raises(ValueError, match="number from 0"):
            layer_index(layer, 8)


def test_models_are_shown_side_by_side(tmp_path: Path) -> None:
    write_model(tmp_path / "base", 0)
    write_model(tmp_path / "tuned", 1)
    console = Console(file=StringIO(), width=100)
    output = tmp_path / "probe.html"
    names = [str(tmp_path / "base"), str(tmp_path / "tuned")]
    probe(names, read_config(tmp_path), "0.5", 12, output, console)
    numbers = json.loads((tmp_path / "probe.json").read_text())
    assert list(numbers["models"]) == ["base", "tuned"] and numbers["num_texts"] == {"law": 12, "code": 12, "math": 12}
    assert numbers["models"]["base"] != numbers["models"]["tuned"]
    assert numbers["models"]["base"]["linear_probe_accuracy"] > 0.9  # their bytes alone tell them apart
    assert numbers["models"]["base"]["centroid_distances"]["law"]["code"] > 0
    assert "Representation probe" in output.read_text()


def test_a_run_stands_for_its_base_model_and_its_result(tmp_path: Path) -> None:
    write_model(tmp_path / "base", 0)
    config = read_config(tmp_path)
    for name in ("first", "second"):
        run = config.output_dir / name
        (run / "weights").mkdir(parents=True)
        (run / "config.json").write_text(config.model_copy(update={"name": name}).model_dump_json())
        write_model(run / "model", 1)
    runs = [str(config.output_dir / name) for name in ("first", "second")]
    probe(runs, None, "2", 8, tmp_path / "probe.html", Console(file=StringIO()))
    assert list(json.loads((tmp_path / "probe.json").read_text())["models"]) == ["base", "first", "second"]
    with pytest.raises(ValueError, match="with --config"):
        probe([str(tmp_path / "base")], None, "2", 8, tmp_path / "probe.html", Console(file=StringIO()))


@pytest.mark.parametrize(
    ("name", "layer", "line"),
    [("nowhere", "0.5", r"^nowhere: no such folder: .*nowhere$"), ("base", "9", "^layer '9': give .* to 4$")],
)
def test_what_cannot_be_probed_is_refused_before_a_text_is_read(
    tmp_path: Path, name: str, layer: str, line: str
) -> None:
    write_model(tmp_path / "base", 0)
    config = read_config(tmp_path)
    (tmp_path / "law.jsonl").unlink()  # it would be missed
    with pytest.raises(ValueError, match=line):
        probe([str(tmp_path / name)], config, layer, 8, tmp_path / "probe.html", Console(file=StringIO()))
