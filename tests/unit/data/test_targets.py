"""Settings of a domain that say what of its rows is learned, and what of them the key of a store depends on."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from workers.config.data import DataConfig, DomainConfig
from workers.data.files import BadRow, Shard
from workers.data.formats.example import Example
from workers.data.preparing import plan_domain
from workers.data.sources import plan_sources, read_examples

TALK = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Uno."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Due."},
]
LAST = (False, False, False, True)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = {"talk": {"messages": TALK}, "text": {"text": "[A] Hi [/A]"}, "pair": {"prompt": "One?", "completion": "1"}}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return {name: tmp_path / f"{name}.jsonl" for name in rows}


def examples(domain: DomainConfig, data: DataConfig) -> list[Example | BadRow]:
    """Of both sides, by the tasks that a run would work on."""
    tasks = plan_domain("d", domain, data, "tokenizer").tasks
    return [row for task in tasks for row in read_examples(task.source, task.shard)]  # type: ignore[misc]


def test_train_on_of_the_data_and_of_the_domain(files: dict[str, Path]) -> None:
    def learned(of_data: str = "all", **of_domain: Any) -> set[tuple[bool, ...]]:
        domain = DomainConfig(train=[files["talk"]], eval=[files["talk"]], **of_domain)
        rows = examples(domain, DataConfig(train_on=of_data))  # type: ignore[arg-type]
        assert len(rows) == 2
        return {row.learned for row in rows if isinstance(row, Example)}

    assert learned() == learned("last", train_on="all") == {()}
    assert learned("last") == learned("all", train_on="last") == {LAST}


def test_text_has_template_is_for_documents(files: dict[str, Path]) -> None:
    for format_name in ("auto", "text"):
        domain = DomainConfig(train=[files["text"]], format=format_name, text_has_template=True)
        (row,) = examples(domain, DataConfig(train_on="last"))
        assert row == Example(1, text="[A] Hi [/A]", has_template=True)
    (row,) = examples(DomainConfig(train=[files["text"]]), DataConfig())
    assert isinstance(row, Example) and not row.has_template
    domain = DomainConfig(train=[files["text"], files["talk"]], text_has_template=True)
    with pytest.raises(ValueError, match=r"domain 'd': .*talk\.jsonl: text_has_template is for rows of format text"):
        plan_sources("d", domain, "train")
    domain = DomainConfig(train=[files["text"]], train_on="last")
    with pytest.raises(ValueError, match=r"domain 'd': .*text\.jsonl: train_on is for conversations"):
        plan_sources("d", domain, "train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"format": "messages", "text_has_template": True},
            "text_has_template is for rows of format text, not",
        ),
        ({"format": "text", "train_on": "last"}, "train_on is for conversations"),
        ({"train_on": "first"}, "train_on"),
    ],
)
def test_settings_that_fit_no_row_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DomainConfig(train=[Path("a.jsonl")], **settings)


def test_the_key_of_a_store_tells_targets_apart_and_nothing_else(files: dict[str, Path]) -> None:
    def key(name: str, of_data: str = "all", **settings: Any) -> str:
        domain = DomainConfig(train=[files[name]], **settings)
        return plan_domain("d", domain, DataConfig(train_on=of_data), "tokenizer").key  # type: ignore[arg-type]

    for name in ("talk", "pair"):
        assert key(name) == key(name, train_on="all") == key(name, "last", train_on="all")
        assert key(name, "last") == key(name, train_on="last") == key(name, "all", train_on="last")
        assert key(name) != key(name, "last")
    assert key("text") == key("text", "last")  # there is no last answer in a document
    assert key("text") != key("text", text_has_template=True)
    # Named names and found ones are the same names; a detected format refuses rows that a named one reads.
    assert key("pair") != key("pair", format="prompt_completion")
    evaluated = {"train": [files["talk"]], "eval": [files["talk"]], "exclude": [{"pattern": "x"}]}
    here = plan_domain("d", DomainConfig(**evaluated), DataConfig(), "t").key
    evaluated["exclude"] = [{"pattern": "x", "eval": True}]
    assert plan_domain("d", DomainConfig(**evaluated), DataConfig(), "t").key != here


def test_names_that_were_found_are_those_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"query": "q", "response": "a", "extra": None}) + "\n")
    (source,) = plan_sources("d", DomainConfig(train=[path]), "train")
    assert source.fields == {"prompt": "query", "completion": "response"}
    (row,) = read_examples(source, Shard())
    assert isinstance(row, Example) and row.messages[1]["content"] == "a"
    named = DomainConfig(train=[path], format="prompt_completion")
    (row,) = read_examples(plan_sources("d", named, "train")[0], Shard())
    assert isinstance(row, BadRow) and row.reason.startswith("missing field: `prompt`; it has 'query', 'response'")
