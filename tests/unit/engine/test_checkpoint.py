"""Which checkpoint a run goes on from: the newest complete one; anything torn or altered is passed over by name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.durable import commit_folder, temporary_folder
from workers.engine.checkpoint import find_fault, latest_checkpoint


def make_checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir()
    files = {}
    for name in ("state.json", "masters-00000.safetensors"):
        content = f"{name} of step {step}".encode()
        (path / name).write_bytes(content)
        files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps({"files": files}))
    return path


def flip_a_byte(path: Path) -> None:
    content = bytearray((path / "masters-00000.safetensors").read_bytes())
    content[3] ^= 1
    (path / "masters-00000.safetensors").write_bytes(content)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip_a_byte, "masters-00000.safetensors does not have the SHA-256"),
    "a short file": (lambda p: (p / "state.json").write_text("{"), "state.json has 1 bytes"),
    "an absent file": (lambda p: (p / "state.json").unlink(), "state.json cannot be read"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json cannot be read"),
    "half a manifest": (lambda p: (p / "manifest.json").write_text('{"files": {"sta'), "manifest.json is damaged"),
    "an odd manifest": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "an empty manifest": (lambda p: (p / "manifest.json").write_text('{"files": {}}'), "does not name state.json"),
}


def test_no_folder_and_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 8):
        make_checkpoint(tmp_path, step)
    (tmp_path / ".step-200000000.tmp").mkdir()
    (tmp_path / "step-old").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-100000000"


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_one_is_named_and_the_one_before_it_used(name: str, tmp_path: Path) -> None:
    plant, said = FAULTS[name]
    older, newer = make_checkpoint(tmp_path, 4), make_checkpoint(tmp_path, 8)
    plant(newer)
    warnings: list[str] = []
    assert latest_checkpoint(tmp_path, warnings.append) == older
    assert len(warnings) == 1
    assert str(newer) in warnings[0] and said in warnings[0]
    assert find_fault(older) is None


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "best"
    for content in ("first", "second"):
        temporary = temporary_folder(target)
        (temporary / "adapter").mkdir()
        (temporary / "adapter" / content).write_text(content)
        commit_folder(temporary, target)
    assert [path.name for path in (target / "adapter").iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "best"
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "weights").write_text("the only copy")
    (tmp_path / ".best.tmp").mkdir()
    temporary = temporary_folder(target)
    assert (target / "weights").read_text() == "the only copy"
    assert list(temporary.iterdir()) == []
