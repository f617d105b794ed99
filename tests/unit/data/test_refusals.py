"""What `format: auto` refuses to guess, and that the advice in each refusal can be followed."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from workers.config.data import DomainConfig
from workers.data.files import BadRow, Shard
from workers.data.formats.example import Example, ExcludedRow
from workers.data.sources import plan_sources, read_examples

ASK, GOOD, BAD = "What is frozen water?", "Ice.", "WRONG-steam"


def user(text: str = ASK) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, split: str = "train", **settings: Any) -> list[Example | ExcludedRow | BadRow]:
    config = DomainConfig(train=[path], eval=[path], **settings)
    return [row for source in plan_sources("d", config, split) for row in read_examples(source, Shard())]


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ValueError, match=r"^domain 'd': ") as error:
        read(path, **settings)
    assert str(path) in str(error.value)
    return str(error.value)


def advice_in(message: str) -> dict[str, Any]:
    """The settings at the end of a message, as a person would copy them."""
    settings = yaml.safe_load("{" + message.rpartition("write ")[2] + "}")
    assert isinstance(settings, dict)
    return settings


PREFERENCES: dict[str, list[dict[str, Any]]] = {
    "unpaired": [
        {"prompt": ASK, "completion": GOOD, "label": True},
        {"prompt": ASK, "completion": BAD, "label": False},
    ],
    "unpaired, numbers": [
        {"prompt": ASK, "completion": GOOD, "label": 1},
        {"prompt": ASK, "completion": BAD, "label": 0},
    ],
    "unpaired, signs": [
        {"question": ASK, "answer": GOOD, "labels": 1.0},
        {"question": ASK, "answer": BAD, "labels": -1.0},
    ],
    "unpaired, words": [
        {"prompt": ASK, "completion": GOOD, "label": "desirable"},
        {"prompt": ASK, "completion": BAD, "label": "Undesirable"},
    ],
    "unpaired, only good ones at first": [{"prompt": ASK, "completion": GOOD, "label": True}] * 120
    + [{"prompt": ASK, "completion": BAD, "label": False}],
    "unpaired messages": [
        {"messages": [user(), assistant(GOOD)], "label": True},
        {"messages": [user(), assistant(BAD)], "label": False},
    ],
    "unpaired sharegpt": [
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}], "kto_tag": True},
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": BAD}], "kto_tag": False},
    ],
    "unpaired alpaca": [
        {"instruction": ASK, "output": GOOD, "is_correct": "true"},
        {"instruction": ASK, "output": BAD, "is_correct": "false"},
    ],
    "marked as bad": [
        {"prompt": ASK, "response": GOOD, "rejected": False},
        {"prompt": ASK, "response": BAD, "rejected": True},
    ],
    "paired": [{"prompt": ASK, "chosen": GOOD, "rejected": BAD}],
    "paired, other prompt": [{"system": "Be brief.", "question": ASK, "chosen": GOOD, "rejected": BAD}],
    "paired messages": [{"prompt": [user()], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}],
    "paired whole conversations": [
        {
            "prompt": ASK,
            "chosen": [user(), assistant(GOOD)],
            "rejected": [user(), assistant(BAD)],
            "score_chosen": 9.0,
        }
    ],
    "paired sharegpt": [
        {
            "conversations": [{"from": "human", "value": ASK}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        }
    ],
    "messages and a bad answer": [{"messages": [user(), assistant(GOOD)], "rejected_response": BAD}],
    "pair and a bad answer": [{"query": ASK, "response": GOOD, "rejectedResponse": BAD}],
    "suffixes": [{"prompt": ASK, "response_chosen": GOOD, "response_rejected": BAD}],
    "preferred": [{"prompt": ASK, "preferred": GOOD, "non_preferred": BAD}],
    "outputs": [{"input": ASK, "preferred_output": [assistant(GOOD)], "non_preferred_output": [assistant(BAD)]}],
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preference_data_is_refused_and_the_advice_leaves_the_good_answers(tmp_path: Path, name: str) -> None:
    rows = PREFERENCES[name]
    path = write(tmp_path / "rows.jsonl", rows)
    message = refusal(path)
    columns = [key for key in rows[0] if re.search("label|kto|correct|rejected|preferred", key, re.IGNORECASE)]
    assert "preference data: " in message and any(f"`{column}`" in message for column in columns)
    for split in ("train", "eval"):
        read_rows = read(path, split, **advice_in(message))
        examples = [row for row in read_rows if isinstance(row, Example)]
        assert not any(isinstance(row, BadRow) for row in read_rows)
        answers = {example.messages[-1]["content"] for example in examples}
        assert answers == {GOOD} and {example.messages[-2]["content"] for example in examples} == {ASK}
        assert "WRONG" not in str(examples)


def test_a_pair_without_a_question_can_be_read_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"chosen": f"Human: {ASK} Bot: {GOOD}", "rejected": BAD}])
    assert [row.text for row in read(path, **advice_in(refusal(path)))] == [f"Human: {ASK} Bot: {GOOD}"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "response_0": GOOD, "response_1": BAD, "better_response_id": 0},
        {"question": ASK, "response_j": GOOD, "response_k": BAD},
        {"conversation_a": [user(), assistant(GOOD)], "conversation_b": [user(), assistant(BAD)], "winner": "model_a"},
        {"messages": [user(), assistant(GOOD)], "answer_a": GOOD, "answer_b": BAD},
    ],
)
def test_several_answers_to_one_prompt_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    assert "preference data: `" in refusal(write(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize("num_before", [0, 150])
def test_preference_rows_further_down_are_refused_one_by_one(tmp_path: Path, num_before: int) -> None:
    """The first rows decide the layout; a file may be two files put together."""
    plain = {"prompt": ASK, "completion": GOOD, "id": 1}
    marked = [plain | {"label": value} for value in (False, True, None)]
    path = write(tmp_path / "rows.jsonl", [plain] * num_before + marked)
    if num_before == 0:
        refusal(path)
        return
    rows = read(path)
    refused = [row for row in rows if isinstance(row, BadRow)]
    assert [(row.line, row.kind) for row in refused] == [(151, "preference data"), (152, "preference data")]
    assert sum(isinstance(row, Example) for row in rows) == 151
    assert all(isinstance(row, Example) for row in read(path, format="prompt_completion"))


def test_names_that_travel_with_the_tasks_are_bounded(tmp_path: Path) -> None:
    rows = [{"text": "x", "y" * 200: 1, **{f"name {row} {n}": 1 for n in range(50)}} for row in range(100)]
    config = DomainConfig(train=[write(tmp_path / "rows.jsonl", rows)])
    (source,) = plan_sources("d", config, "train")
    assert source.harmless is not None and len(source.harmless) == 1000
    assert [type(row) for row in read_examples(source, Shard())] == [Example] * 100


@pytest.mark.parametrize(
    "further",
    [
        {"label": 3},  # one of several classes
        {"label": "geography"},
        {"label": None, "chosen": None, "rejected": ""},
        {"score": 0.2, "rating": 4, "source": "web", "timestamp": 1},
        {"language": "en", "is_english": True},
        {"text": "the same, rendered"},
        {"reasoning": "off"},
        {"images": [], "documents": None},
    ],
    ids=str,
)
def test_other_columns_stop_nothing(tmp_path: Path, further: dict[str, Any]) -> None:
    rows = [
        {"messages": [user(), assistant(GOOD)]},
        {"prompt": ASK, "completion": GOOD},
        {"instruction": ASK, "output": GOOD},
    ]
    for number, row in enumerate(rows):
        path = write(tmp_path / f"{number}.jsonl", [row | further] * 3)
        assert [row.messages for row in read(path)] == [(user(), assistant(GOOD))] * 3  # type: ignore[union-attr]


def test_classes_that_begin_with_two_are_seen_as_marks_only_where_they_stay_two(tmp_path: Path) -> None:
    rows = [{"prompt": ASK, "completion": GOOD, "label": number % 4} for number in range(200)]
    assert len(read(write(tmp_path / "four.jsonl", rows))) == 200
    assert "`label` marks rows" in refusal(write(tmp_path / "two.jsonl", rows[:2]))
    documents = [{"text": "A good film.", "label": 1}, {"text": "A bad film.", "label": 0}]
    assert len(read(write(tmp_path / "text.jsonl", documents))) == 2  # no answers are marked there


TWO_LAYOUTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"messages": [user(), assistant(GOOD)], "prompt": ASK, "completion": BAD}, ["messages", "prompt, completion"]),
    (
        {"messages": [user(), assistant(GOOD)], "conversations": [{"from": "gpt", "value": BAD}]},
        ["messages", "conversations"],
    ),
    ({"instruction": ASK, "output": GOOD, "prompt": ASK, "completion": BAD}, ["instruction, output"]),
    ({"question": ASK, "answer": GOOD, "response": BAD}, ["question, answer", "question, response"]),
    ({"question": ASK, "answer": GOOD, "text": "a passage"}, ["question, answer", "text (by text)"]),
]


@pytest.mark.parametrize(("row", "names"), TWO_LAYOUTS, ids=lambda value: "-".join(value))
def test_rows_that_fit_two_layouts_are_refused(tmp_path: Path, row: dict[str, Any], names: list[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    message = refusal(path)
    assert "two layouts: the rows fit " in message and all(name in message for name in names)
    (example,) = read(path, **advice_in(message))
    assert isinstance(example, Example) and example.messages == (user(), assistant(GOOD))


def test_a_document_beside_the_formats_own_names_is_passed_over(tmp_path: Path) -> None:
    row = {"instruction": ASK, "input": "", "output": GOOD, "text": f"Below is an instruction. {ASK} {GOOD}"}
    (example,) = read(write(tmp_path / "rows.jsonl", [row]))
    assert isinstance(example, Example) and example.messages == (user(), assistant(GOOD))


@pytest.mark.parametrize(
    ("further", "column"),
    [
        ({"documents": [{"title": "Ice", "text": "It is cold."}]}, "documents"),
        ({"images": ["a.png"]}, "images"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"reasoning": "Water freezes."}, "reasoning"),
        ({"history": [["a", "b"]]}, "history"),
    ],
)
def test_columns_that_would_be_left_out_are_told(tmp_path: Path, further: dict[str, Any], column: str) -> None:
    plain = {"messages": [user(), assistant(GOOD)]}
    path = write(tmp_path / "rows.jsonl", [plain, plain | further])
    message = refusal(path)
    assert f"the rows have `{column}` in addition to the conversation" in message
    assert len([row for row in read(path, **advice_in(message)) if isinstance(row, Example)]) == 2


@pytest.mark.parametrize("column", ["context", "input"])
def test_a_context_beside_a_question_is_told(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": ASK, column: "At 0 degrees.", "answer": GOOD}])
    message = refusal(path)
    (example,) = read(path, **advice_in(message))
    assert isinstance(example, Example) and example.messages == (user(), assistant(GOOD))
    whole = re.search(r"write (format: .*})\. To leave", message)
    assert whole
    (example,) = read(path, **yaml.safe_load("{" + whole.group(1) + "}"))
    assert isinstance(example, Example) and example.messages[0] == user(f"{ASK}\n\nAt 0 degrees.")


def test_exclusions_by_field_look_at_values_that_are_no_text_and_at_rows_that_cannot_be_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": ASK, "completion": GOOD, "ok": True, "level": 1, "tags": [1, "x"]},
        {"prompt": ASK, "completion": GOOD, "ok": False, "level": 10, "tags": [2, True]},
        {"prompt": ASK, "completion": None, "ok": False, "level": 2.5, "tags": None},
    ]
    path = write(tmp_path / "rows.jsonl", rows)

    def kinds(split: str = "train", **exclusion: Any) -> str:
        return "".join(
            type(row).__name__[0:2] for row in read(path, split, format="prompt_completion", exclude=[exclusion])
        )

    assert kinds(field="ok", pattern="^false$") == "ExExEx"
    excluded = read(path, format="prompt_completion", exclude=[{"field": "ok", "pattern": "^false$"}])
    assert [type(row) for row in excluded] == [Example, ExcludedRow, ExcludedRow]
    for pattern, field, places in (("^1$", "level", [0]), ("^2\\.5$", "level", [2]), ("^(2|true)$", "tags", [1])):
        rows_read = read(path, format="prompt_completion", exclude=[{"field": field, "pattern": pattern}])
        assert [place for place, row in enumerate(rows_read) if isinstance(row, ExcludedRow)] == places
    # Evaluation files stay as they are unless they are named.
    assert ExcludedRow not in map(type, read(path, "eval", format="prompt_completion", exclude=[{"pattern": "."}]))


def test_exclusions_search_thoughts_and_calls(tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": {"town": "Tromsø"}}
    asks = {"role": "assistant", "content": "", "thinking": "Cold there.", "tool_calls": [call]}
    path = write(tmp_path / "rows.jsonl", [{"messages": [user(), asks]}])
    for pattern, is_found in (("^cold", True), ("tromsø", True), ("^weather", True), ("bergen", False)):
        (row,) = read(path, exclude=[{"pattern": pattern}])
        assert isinstance(row, ExcludedRow) is is_found


def test_a_column_store_fills_nulls_that_are_taken_out_again(tmp_path: Path) -> None:
    calls = [{"name": "weather", "arguments": {"town": "Oslo"}}, {"name": "trains", "arguments": {"to": "Bodø"}}]
    rows = [
        {
            "messages": [
                user(),
                assistant("") | {"tool_calls": [call], "weight": 1},
                {"role": "tool", "tool_call_id": "c", "content": "x"},
                assistant(GOOD) | {"reasoning": "Hm."},
            ],
            "tools": [{"name": call["name"], "parameters": {"properties": {key: {"type": "string"}}}}],
        }
        for call in calls
        for key in call["arguments"]
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == read(write(tmp_path / "rows.jsonl", rows))


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [("label", "good", "bad"), ("label", 1, 0), ("label", 1.0, 0.0), ("label", 1, -1), ("rejected", "no", "yes")],
)
def test_the_advice_leaves_out_bad_rows_that_come_later(tmp_path: Path, column: str, good: Any, bad: Any) -> None:
    rows = [{"prompt": ASK, "completion": GOOD, column: good} for _ in range(100)]
    path = write(tmp_path / "rows.jsonl", [*rows, {"prompt": ASK, "completion": BAD, column: bad}])
    found = read(path, **advice_in(refusal(path)))
    assert [type(row) for row in found] == [Example] * 100 + [ExcludedRow]


@pytest.mark.parametrize("column", ["passage", "options", "choices"])
def test_what_belongs_to_the_question_is_not_left_out_unseen(tmp_path: Path, column: str) -> None:
    value = "Water freezes." if column == "passage" else ["Ice.", "Steam."]
    path = write(tmp_path / "rows.jsonl", [{"question": ASK, "answer": GOOD, column: value}])
    assert f"the rows have `{column}` in addition to the conversation" in refusal(path)
