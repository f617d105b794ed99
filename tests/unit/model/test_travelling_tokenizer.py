"""The tokenizer that the driver hands to preparing tasks is the same when it arrives, and brings no torch along."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import pre_tokenizers

from tests.runs import ROOT
from workers.config.data import DomainConfig
from workers.config.model import ModelConfig
from workers.data.files import Shard
from workers.data.formats.example import Example
from workers.data.preparing import fingerprint_tokenizer
from workers.data.sources import plan_sources, read_examples
from workers.data.templates import Tokens, tokenize_examples
from workers.model.tokenizer import load_tokenizer

ASCII = [chr(code) for code in range(33, 127)]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|endoftext|>", "<eos>", "<bos>", "<mask>"]
BYTES = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "He", "lo"])}
PIECES = {token: i for i, token in enumerate([*SPECIAL, "▁", *ASCII, *(f"<0x{i:02X}>" for i in range(256))])}
WORDS = {token: i for i, token in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *ASCII])}
SCORES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -2.0), *((c, -3.0) for c in ASCII)]
CLASSES: dict[str, dict[str, Any]] = {
    "Qwen2Tokenizer": {"vocab": BYTES, "merges": [("H", "e")]},
    "GPT2Tokenizer": {"vocab": BYTES, "merges": [("l", "o")], "unk_token": "<|endoftext|>"},
    "LlamaTokenizer": {"vocab": PIECES, "merges": []},
    "GemmaTokenizer": {"vocab": PIECES, "merges": []},
    "T5Tokenizer": {"vocab": SCORES},
    "BertTokenizer": {"vocab": WORDS, "eos_token": "[SEP]"},
    "ByT5Tokenizer": {},  # in Python, not in Rust
}
ROWS = [
    {"messages": [{"role": "user", "content": "Hello, world?"}, {"role": "assistant", "content": "x = 1;\n  y é"}]},
    {"messages": [{"role": "user", "content": "again"}, {"role": "assistant", "content": "Hello"}]},
]

RECEIVE = """
import json, pickle, sys
from tests.unit.model.test_travelling_tokenizer import facts

with open(sys.argv[1], "rb") as file:
    sent, rows = pickle.load(file)
found = {name: facts(tokenizer, rows) for name, tokenizer in sent.items()}
print(json.dumps({"found": found, "modules": sorted(sys.modules)}))
"""


def write_model(folder: Path, name: str) -> ModelConfig:
    getattr(transformers, name)(**CLASSES[name]).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 1000}))
    return ModelConfig(path=str(folder))


def examples(folder: Path) -> list[Example]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (source,) = plan_sources("d", DomainConfig(train=[path]), "train")
    return [row for row in read_examples(source, Shard()) if isinstance(row, Example)]


def facts(tokenizer: transformers.PreTrainedTokenizerBase, rows: list[Example]) -> list[Any]:
    """All that decides a token store: class, rules, padding, template, and ids and targets of some rows."""
    tokens = [
        [r.input_ids.tolist(), r.loss_mask.tolist()] if isinstance(r, Tokens) else [r]
        for r in tokenize_examples(tokenizer, rows)
    ]
    fingerprint = fingerprint_tokenizer(tokenizer)
    return [type(tokenizer).__name__, fingerprint, tokenizer.pad_token_id, tokenizer.chat_template, tokens]


@pytest.fixture(scope="module")
def arrived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts here, those that a fresh process finds of what it is sent, and what that process has imported."""
    folder = tmp_path_factory.mktemp("sent")
    sent = {}
    for name in CLASSES:
        (folder / name).mkdir()
        sent[name] = load_tokenizer(write_model(folder / name, name))
    rows = examples(folder)
    (folder / "sent").write_bytes(pickle.dumps((sent, rows)))
    done = subprocess.run(
        [sys.executable, "-c", RECEIVE, str(folder / "sent")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer | {"here": {name: facts(tokenizer, rows) for name, tokenizer in sent.items()}}


@pytest.mark.parametrize("name", CLASSES)
def test_it_is_the_same_where_it_arrives(arrived: dict[str, Any], name: str) -> None:
    assert arrived["found"][name] == arrived["here"][name]
    assert arrived["here"][name][0] == name
    assert [len(ids) > 5 and any(targets) for ids, targets in arrived["here"][name][4]] == [True, True]


def test_it_brings_no_torch_along(arrived: dict[str, Any]) -> None:
    assert "transformers" in arrived["modules"] and not {"torch", "deepspeed", "ray"} & set(arrived["modules"])
