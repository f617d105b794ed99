"""The shell of the tree search: what is refused before anything is trained."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.config import RunConfig
from orchestrator.search.coarse_driver import coarse_search


def test_a_model_without_a_layer_for_every_range_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    model = {"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2}
    (tmp_path / "base" / "config.json").write_text(json.dumps(model))
    config = RunConfig.model_validate(
        {
            "name": "shallow",
            "output_dir": str(tmp_path / "runs"),
            "model": {"path": str(tmp_path / "base")},
            "domains": {"law": {"train": "law.jsonl"}, "code": {"train": "code.jsonl"}},
            "mixing": {"type": "uniform"},
            "training": {"max_steps": 4},
            "coarse_search": {"speciality": ["law"]},
        }
    )
    with pytest.raises(ValueError, match="of 3 layers holds no layer"):
        coarse_search(config, Console())
    assert not (tmp_path / "runs").exists()
