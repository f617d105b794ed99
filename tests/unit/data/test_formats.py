"""Layouts of rows: what they become, how they are told apart, why they are refused."""

from typing import Any

import pytest

from workers.data.files import RowError
from workers.data.formats import FORMATS, Example, check_fields, detect_format, read_row

TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
]
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": TALK},
    "sharegpt": {
        "system": "s",
        "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}],
    },
    "alpaca": {"system": "s", "instruction": "u", "input": "", "output": "a"},
    "prompt_completion": {"prompt": "u", "completion": "a"},
    "text": {"text": "plain"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_detected_and_read(name: str) -> None:
    assert detect_format([ROWS[name]], {}) == name
    example = read_row(7, ROWS[name], name, {})
    if name == "text":
        assert example == Example(7, text="plain")
    else:
        assert list(example.messages) == (TALK if name != "prompt_completion" else TALK[1:])


def test_fields_are_renamed_and_decide_the_format() -> None:
    fields = {"prompt": "question", "completion": "answer"}
    row = {"question": "u", "answer": "a", "text": "decoy"}
    assert detect_format([row], fields) == "prompt_completion"
    assert list(read_row(1, row, "prompt_completion", fields).messages) == TALK[1:]
    turns = {"chat": [{"from": "user", "value": "u"}, {"from": "assistant", "value": "a"}]}
    fields = {"messages": "chat", "role": "from", "content": "value"}
    assert list(read_row(1, turns, "messages", fields).messages) == TALK[1:]
    with pytest.raises(ValueError, match="promt"):
        check_fields("auto", {"promt": "question"})
    with pytest.raises(ValueError, match="instruction"):
        check_fields("prompt_completion", {"instruction": "question"})


def test_the_majority_of_the_first_rows_decides() -> None:
    assert detect_format([{"x": 1}, ROWS["alpaca"], ROWS["text"], ROWS["alpaca"]], {}) == "alpaca"
    assert detect_format([{"x": 1}], {}) is None


def test_alpaca_joins_instruction_and_input() -> None:
    row = {"instruction": "Translate.", "input": "Haus", "output": "house"}
    assert read_row(1, row, "alpaca", {}).messages[0]["content"] == "Translate.\n\nHaus"
    assert read_row(1, row | {"input": None}, "alpaca", {}).messages[0]["content"] == "Translate."


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("messages", {"messages": "u"}, "wrong type: `messages` is text, not a list"),
        ("messages", {"messages": ["u"]}, "wrong type: message 1 is text, not an object"),
        ("messages", {"messages": []}, "no assistant text"),
        ("messages", {"messages": TALK[:2]}, "no assistant text"),
        ("messages", {"messages": [*TALK, {"role": "tool", "content": "x"}]}, "unknown role: message 4 is by 'tool'"),
        ("messages", {"messages": [{"role": "human", "content": "x"}]}, "unknown role: message 1 is by 'human'"),
        ("messages", {"messages": [{"role": "user"}]}, "missing field: message 1: `content`"),
        ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "wrong type: message 1: `role` is a list"),
        ("messages", {"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}]}, "tool calls are not"),
        ("sharegpt", {"conversations": [{"from": "observation", "value": "x"}]}, "unknown role: message 1"),
        ("alpaca", {"instruction": "u", "output": 3}, "wrong type: `output` is a number"),
        ("text", {"text": " \n"}, "empty text"),
        ("text", {"text": True}, "wrong type: `text` is true or false"),
        ("text", [1], "not an object: the row is a list"),
    ],
)
def test_why_rows_are_refused(name: str, row: Any, reason: str) -> None:
    with pytest.raises(RowError) as error:
        read_row(1, row, name, {})
    assert str(error.value).startswith(reason)


def test_a_prompt_is_all_before_the_last_answer_folded() -> None:
    def prompt(*turns: tuple[str, str]) -> str:
        return Example(1, tuple({"role": role, "content": content} for role, content in turns)).prompt

    asked = prompt(("user", "What  IS\nit? "), ("assistant", "x"))
    assert asked == prompt(("user", "what is it?"), ("assistant", "another answer"), ("user", "more"))
    assert asked != prompt(("user", "what is it?"), ("assistant", "x"), ("user", "more"), ("assistant", "y"))
    assert prompt(("user", "a b"), ("assistant", "x")) != prompt(("user", "a"), ("user", "b"), ("assistant", "x"))
