"""What all tests share: a model folder with a tokenizer of bytes, and optional material beside the checkout."""

import fcntl
import gc
import json
import os
from pathlib import Path

import pytest

from tests.runs import raymix, write_byte_tokenizer, write_run

# What the tests import stays: otherwise each collection of garbage would look through a million objects of it.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights: one token a byte, BOS, EOS and PAD, no chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocab_size = write_byte_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocab_size}))
    return folder


@pytest.fixture(scope="session")
def shared_material() -> Path:
    """Real data and a real base model, where somebody has them."""
    folder = Path(os.environ.get("RAYMIX_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test material in {folder}; RAYMIX_SHARED names another folder")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 30 steps on two workers, with computed references; trained once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-run"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "stdout.txt").exists():
            done = raymix("run", write_run(folder, mixing__reference="computed", reference={"max_steps": 12}))
            assert done.returncode == 0, done.stderr
            (folder / "stdout.txt").write_text(done.stdout)
    return folder / "runs" / "small"
