"""The cases of the shared material: small inputs with their right outcomes, as `raymix inspect` shows them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from orchestrator.inspect.driver import RefusedRow, SeenExample, read_split, to_json
from workers.config.data import DataConfig, DomainConfig
from workers.data.preparing import plan_domain

# Knows system, developer, tools, calls and thoughts, and has no generation block.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content and KEEPS %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}"
    "{% for call in m.tool_calls or [] if CALLS %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "</call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(params=["with tools and thoughts", "without"])
def tokenizer(shared_material: Path, request: pytest.FixtureRequest) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(shared_material / "models" / "base")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    knows = "true" if request.param != "without" else "false"
    tokenizer.chat_template = TEMPLATE.replace("KEEPS", knows).replace("CALLS", knows)
    tokenizer.knows = knows == "true"
    return tokenizer


def rows_of(path: Path, tokenizer: Any, **domain: Any) -> list[dict[str, Any]]:
    """What `inspect --json` shows of a file."""
    plan = plan_domain("d", DomainConfig(train=[path], **domain), DataConfig(), "tokenizer")
    # Every row, those too that a share of the prompts sets aside.
    seen = [row for split in ("train", "eval") for row in read_split(plan, split, DataConfig(), tokenizer)]
    shown = [row for row in seen if isinstance(row, SeenExample | RefusedRow)]
    return sorted((json.loads(to_json(row, tokenizer)) for row in shown), key=lambda row: row["line"])


def cases(folder: Path) -> dict[str, Any]:
    return {case["file"]: case["expect"] for case in json.loads((folder / "cases.json").read_text())}


def test_every_row_with_an_outcome_has_it(shared_material: Path, tokenizer: Any) -> None:
    folder = shared_material / "cases"
    expected = cases(folder)
    listed = {
        file: [row for row in rows if isinstance(row, dict)]
        for file, rows in expected.items()
        if isinstance(rows, list)
    }
    assert len(listed) >= 9
    for file, rows in listed.items():
        found = rows_of(folder / "data" / file, tokenizer)
        assert len(found) == len(rows), (file, found)
        for row, right in zip(found, rows, strict=True):
            check_row(file, row, right, tokenizer.knows)


def check_row(file: str, row: dict[str, Any], right: dict[str, Any], knows_tools: bool) -> None:
    if "refused" in right:
        assert right["refused"] in row["refused"], (file, row)
    elif "tools" in right.get("with", "") and not knows_tools and "call" in right["targets"][0]:
        assert row["refused"].startswith("the chat template omits a tool call"), (file, row)
    else:
        texts = [text for text in right["targets"] if not text.startswith("the call")]
        calls = len(right["targets"]) - len(texts)
        assert len(row["targets"]) == len(texts) + calls, (file, row)
        assert [text.removesuffix("<|im_end|>") for text in row["targets"][calls:]] == texts, (file, row)
        assert all(text.endswith("<|im_end|>") for text in row["targets"])
        assert all("weather" in text and "Bergen" in text for text in row["targets"][:calls])
        for text in right.get("prompt_has", []):
            text = '"name": "weather"' if text.startswith("the schema") else text
            assert text in row["text"] and not any(text in target for target in row["targets"]), (file, row)


def test_a_blank_instruction_leaves_no_blank_lines(shared_material: Path, tokenizer: Any) -> None:
    (row,) = rows_of(shared_material / "cases" / "data" / "blank-instruction.jsonl", tokenizer)
    assert "<|im_start|>user\nTranslate: chat<|im_end|>" in row["text"]


def test_thoughts_are_learned_where_the_template_shows_them(shared_material: Path, tokenizer: Any) -> None:
    rows = rows_of(shared_material / "cases" / "data" / "reasoning.jsonl", tokenizer)
    if tokenizer.knows:
        assert rows[1]["targets"] == [
            "<think>FIRST-THOUGHT</think>56<|im_end|>",
            "<think>SECOND-THOUGHT</think>57<|im_end|>",
        ]
    else:
        assert [row["dropped"] for row in rows] == [["reasoning"], ["reasoning"]]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("array.jsonl", "this is one JSON array, not one row per line: name it array.json"),
        ("gzip-inside.jsonl", "this is gzip: name it gzip-inside.jsonl.gz"),
        ("two-columns-one-name.parquet", "duplicate column: `completion`"),
    ],
)
def test_files_that_are_not_what_they_are_called(shared_material: Path, tokenizer: Any, file: str, told: str) -> None:
    rows = rows_of(shared_material / "cases" / "data" / file, tokenizer)
    assert all(told in row["refused"] for row in rows)


@pytest.mark.parametrize(("file", "num_rows"), [("utf16.jsonl", 5), ("far-timestamp.parquet", 5)])
def test_files_that_are_read(shared_material: Path, tokenizer: Any, file: str, num_rows: int) -> None:
    rows = rows_of(shared_material / "cases" / "data" / file, tokenizer)
    assert [row["targets"] for row in rows] == [[f"Answer {n}.<|im_end|>"] for n in range(num_rows)]


def test_preference_data_is_refused_until_it_is_named(shared_material: Path, tokenizer: Any) -> None:
    path = shared_material / "cases" / "data" / "unpaired-preference.jsonl"
    with pytest.raises(ValueError, match="preference data: `label` marks rows as good or bad"):
        rows_of(path, tokenizer)
    exclude = [{"field": "label", "pattern": "^false$"}]
    (row,) = rows_of(path, tokenizer, format="prompt_completion", exclude=exclude)
    assert row["targets"] == ["4<|im_end|>"]


def test_text_that_carries_its_template(shared_material: Path, tokenizer: Any) -> None:
    path = shared_material / "cases" / "data" / "template-in-text.jsonl"
    (row,) = rows_of(path, tokenizer)
    assert "control token in the text" in row["refused"] and "text_has_template" in row["refused"]
    (row,) = rows_of(path, tokenizer, text_has_template=True)
    assert row["text"] == json.loads(path.read_text())["text"]
    assert row["num_targets"] == row["num_tokens"] - 1
