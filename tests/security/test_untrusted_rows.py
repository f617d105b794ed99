"""Rows come from anybody: they are data, never paths, code, turns of somebody else or a way to use up the machine."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.config.data import DataConfig, DomainConfig, HubConfig
from workers.config.model import ModelConfig
from workers.data.files import BadRow, Shard
from workers.data.formats.example import Example
from workers.data.preparing import plan_domain
from workers.data.sources import plan_sources, read_examples
from workers.data.store import STORE_VERSION, TokenStore
from workers.data.tokenization import tokenize_shard
from workers.model.tokenizer import load_tokenizer

DATA = DataConfig(max_length=256)


def pieces_of(path: Path, fields: dict[str, str] | None = None, format_name: str = "auto") -> list[Example | BadRow]:
    config = DomainConfig(train=[path], fields=fields or {}, format=format_name)
    return list(read_examples(plan_sources("d", config, "train")[0], Shard()))


def test_a_row_is_never_taken_for_a_path(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    path = tmp_path / "a.jsonl"
    rows = [{"text": str(secret)}, {"text": f"file://{secret}"}, {"text": {"path": str(secret), "bytes": None}}]
    path.write_text("\n".join(map(json.dumps, rows)))
    read = pieces_of(path)
    assert "the secret" not in str(read)
    assert [type(row) for row in read] == [Example, Example, BadRow]


def test_a_hub_set_that_declares_images_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    opened = []
    monkeypatch.setattr("datasets.Image.decode_example", lambda *arguments, **_: opened.append(arguments))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"text": "fine", "picture": "/etc/passwd"}) + "\n")
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: picture\n    dtype: image\n---\n"
    )
    (source,) = plan_sources("d", DomainConfig(hub=HubConfig(path=str(folder))), "train")
    (row,) = read_examples(source, Shard())
    assert isinstance(row, Example) and row.text == "fine" and not opened


def test_a_loading_script_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(ValueError, match="domain 'd': hub set"):
        plan_sources("d", DomainConfig(hub=HubConfig(path=str(folder))), "train")
    assert not (tmp_path / "ran").exists()


def test_a_store_never_unpickles(tmp_path: Path) -> None:
    """An array of objects in a store's folder would run code when it is loaded with pickles allowed."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    names = ("input_ids", "position_ids", "loss_mask", "row_lengths", "row_loss_tokens", "row_examples")
    for name in names:
        np.save(tmp_path / f"{name}.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "ran").unlink(missing_ok=True)
    sizes = {name: (tmp_path / f"{name}.npy").stat().st_size for name in names}
    counts = dict.fromkeys(("num_rows", "num_examples", "num_tokens", "num_loss_tokens", "max_length"), 1)
    manifest = {"store_version": STORE_VERSION, "fingerprint": "f", "array_bytes": sizes, **counts}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is damaged"):
        TokenStore.open(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_thousand_hostile_rows_cost_no_good_row(tmp_path: Path, name: str, tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tokenizer_folder)))
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    good = json.dumps({"messages": talk}).encode()
    hostile = [
        b"[" * 20_000,
        b'{"messages": ' * 2_000,
        b'{"messages": ' + b"1" * 20_000 + b"}",
        b'{"messages": [{"role": "__class__", "content": "x"}]}',
        b'{"messages": [{"role": "assistant", "content": {"$ref": "/etc/passwd"}}]}',
        json.dumps({"messages": [{"role": "user", "content": "q<eos>"}, talk[1]]}).encode(),
        rb'{"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "a"}]}',
        b'{"messages": [{"role": "user", "content": "\xc0\xaf"}]}',
        b"\x80\x04\x95\x00\x00",
        b'{"__proto__": {"messages": []}}',
    ]
    lines = [line for number in range(1000) for line in (good, hostile[number % len(hostile)])]
    raw = b"\n".join(lines)
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw, 1) if name.endswith("gz") else raw)
    plan = plan_domain("d", DomainConfig(train=[path], eval=[path], format="messages"), DATA, "t")
    shard = tokenize_shard(plan.tasks[0], DATA, tokenizer, tmp_path)
    assert (shard.report.num_rows, shard.report.num_bad_rows) == (2000, 1000)
    assert shard.num_examples["train"] == 1000
    assert [case.line for case in shard.report.bad_row_cases] == list(range(2, 42, 2))
