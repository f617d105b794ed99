"""Families that keep examples apart in unlike ways, through the engine: prove, train three steps, export, load again.

benchmarks/families.py does the same with every family that transformers builds small; docs/families.md is its table.
"""

import functools
from pathlib import Path
from typing import Any

import pytest

from benchmarks.families import plain_training, reloaded, train
from benchmarks.tiny_families import write
from tests.integration.zero_processes import processes
from tests.soak import few

FAMILIES = {
    "gpt_oss": "mask",
    "opt": "mask",
    "mamba2": "separate",
    "qwen3_next": "separate",
    "deepseek_v3": "positions",
    "longcat_flash": "positions",  # which modules a rank calls depends on its tokens
    "xlstm": "separate",  # transformers cannot load it in partitions
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@functools.cache
def base(folder: Path, family: str) -> tuple[Path, dict[str, Any]]:
    written = write(family, folder / family)
    return written, plain_training(written)


@pytest.mark.parametrize(("zero_stage", "strategy"), few([(3, "lora"), (1, "full"), (1, "lora"), (3, "full")], 1))
@pytest.mark.parametrize("family", few(FAMILIES, 3))
def test_what_is_trained_and_exported_is_what_plain_transformers_computes(
    family: str, zero_stage: int, strategy: str, folder: Path
) -> None:
    model, plain = base(folder, family)
    output = folder / f"{family}-{zero_stage}-{strategy}"
    result = processes(2).run(train, model, zero_stage, strategy, output)[0]
    assert result["way"] == FAMILIES[family]
    assert result["base"] == pytest.approx(plain["base"], abs=1e-4)
    if strategy == "full":
        assert result["steps"] == pytest.approx(plain["steps"], abs=1e-4)
    assert result["trained"] != pytest.approx(plain["base"], abs=1e-3)
    again = reloaded(output)
    assert again["keys"] == []
    assert again["losses"] == pytest.approx(result["trained"], abs=1e-4)
