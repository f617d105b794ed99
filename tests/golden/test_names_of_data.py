"""Names of token stores, and the hashes that decide which rows are trained and measured.

A store is found by its key. The hashes decide which examples are held out, sampled and measured: where one changes,
runs on the same data can no longer be compared with earlier ones.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.golden.recorded import check_recorded
from tests.unit.data.stores import make_schedule, make_store, weights
from workers.config.data import DataConfig, DomainConfig, Exclusion
from workers.data.chat_template import freeze_date
from workers.data.formats.example import Example
from workers.data.permutation import derive_key, permutation
from workers.data.preparing import Sample, fingerprint_tokenizer, plan_domain
from workers.data.sources import hash_file
from workers.data.templates import Tokens
from workers.data.tokenization import hash_example, hash_prompt
from workers.signals.meter import SignalPool
from workers.validation.held_out import draw_sample

WHY = "Token stores that users have would be made again, or the same settings would train and measure other rows."


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files of fixed content."""

    def talk(n: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{n}+1="}, {"role": "assistant", "content": f"{n + 1}"}]

    lines: dict[str, list[dict[str, Any]]] = {
        "train": [{"messages": talk(n)} for n in range(30)],
        "eval": [{"prompt": f"say {n}", "completion": f"{n}"} for n in range(8)],
        "text": [{"text": f"Chapter {n}", "lang": "en"} for n in range(12)],
    }
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: tmp_path / f"{name}.jsonl" for name in lines}


def test_keys_of_token_stores(files: dict[str, Path]) -> None:
    train, held_out, text = files["train"], files["eval"], files["text"]
    data = DataConfig()
    cases: dict[str, tuple[DomainConfig, DataConfig]] = {
        "plain": (DomainConfig(train=[train], eval=[held_out]), data),
        "held out of the training rows": (DomainConfig(train=[train], eval_fraction=0.1), data),
        "two files": (DomainConfig(train=[train, held_out], eval=[held_out]), data),
        "half": (DomainConfig(train=[train], eval=[held_out], fraction=0.5), data),
        "count": (DomainConfig(train=[train], eval=[held_out], count=7), DataConfig(sample_seed=3)),
        "only measured": (DomainConfig(eval=[held_out]), data),
        "format named": (DomainConfig(train=[train], eval_fraction=0.1, format="messages"), data),
        "rows left out": (
            DomainConfig(train=[text], eval_fraction=0.2, exclude=[Exclusion(field="lang", pattern="de")]),
            data,
        ),
        "long rows": (DomainConfig(train=[train], eval=[held_out]), DataConfig(max_length=4096, packing=False)),
        "last answers": (DomainConfig(train=[train], eval=[held_out], train_on="last"), data),
        "truncated": (DomainConfig(train=[train], eval=[held_out]), DataConfig(too_long="truncate")),
    }
    found = {
        label: plan_domain("sums", domain, settings, "tokenizer").key for label, (domain, settings) in cases.items()
    }
    check_recorded("names", "keys of token stores", found, WHY)


def tokenizer(**changes: Any) -> Any:
    """What a fingerprint reads of a tokenizer."""
    rules = {"version": "1.0", "truncation": {"max_length": 9}, "padding": None, "model": {"vocab": {"a": 0, "b": 1}}}
    parts = {
        "is_fast": True,
        "backend_tokenizer": SimpleNamespace(to_str=lambda: json.dumps(rules)),
        "get_vocab": lambda: {"a": 0, "b": 1},
        "special_tokens_map": {"bos_token": "<s>", "eos_token": "</s>"},
        "chat_template": "{{ messages }}",
    }
    return SimpleNamespace(**(parts | changes))


def test_fingerprints_of_tokenizers() -> None:
    found = {
        "fast": fingerprint_tokenizer(tokenizer()),
        "slow": fingerprint_tokenizer(tokenizer(is_fast=False)),
        "without a template": fingerprint_tokenizer(tokenizer(chat_template=None)),
        "several templates": fingerprint_tokenizer(tokenizer(chat_template={"default": "a", "tools": "b"})),
    }
    check_recorded("names", "fingerprints of tokenizers", found, WHY)


def test_the_date_of_a_chat_template_is_kept_beside_the_stores(tmp_path: Path) -> None:
    (tmp_path / "template-date").write_text("2024-02-09")
    asks = tokenizer(chat_template="Today: {{ strftime_now('%d %b %Y') }}")
    freeze_date(asks, tmp_path)
    assert asks.chat_template == "Today: {{ '09 Feb 2024' }}", WHY


def test_hashes_of_prompts_examples_and_files(files: dict[str, Path]) -> None:
    asked = Example(1, ({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}))
    tokens = Tokens(np.array([5, 6, 7], dtype=np.int32), np.array([False, True, True]))
    found = {
        "prompt": hash_prompt(asked),
        "document": hash_prompt(Example(1, text="A  Document")),
        "example": hash_example(tokens),
        "file": hash_file(files["train"]),
    }
    check_recorded("names", "hashes of rows", found, WHY)


def test_order_of_training_rows() -> None:
    """A run that resumes goes through its rows in the order in which it was begun."""
    schedule = make_schedule({"law": 12, "code": 30}, 6, seed=2)
    schedule.announce(weights(0, 1, law=1.0, code=2.0))
    rows = schedule.rows(1, 4)
    sample = Sample(fraction=0.1, count=None, seed=3).choose("law", 100)
    assert sample is not None
    found = {
        "key": int(derive_key(3, "sample", "law")),
        "permutation": permutation(derive_key(0), 16).tolist(),
        "sample": sample.tolist(),
        "domains of steps": rows.domain_SB.tolist(),
        "rows of steps": rows.row_SB.tolist(),
    }
    check_recorded("names", "order of training rows", found, WHY)


def test_held_out_sample() -> None:
    sample = draw_sample(make_store(1, 40), 6)
    found = {"examples": sample.example_E.tolist(), "rows": sample.row_E.tolist()}
    check_recorded("names", "held-out sample", found, WHY)


def test_pool_of_signals() -> None:
    pool = SignalPool({"law": make_store(0, 60), "code": make_store(1, 25)}, 5, 8, 2)
    found = {"digest": pool.digest, "drawn": [[batch.domain, *batch.rows] for batch in pool.draw(10)]}
    check_recorded("names", "pool of signals", found, WHY)
