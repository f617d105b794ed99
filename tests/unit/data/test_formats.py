"""Layouts of rows: what they become, how they are told apart, why they are refused."""

import json
from typing import Any

import pytest

from workers.data.formats import read_row
from workers.data.formats.detection import check_fields, detect_layout
from workers.data.formats.example import Example
from workers.data.formats.layouts import FORMATS
from workers.data.formats.values import RowError

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
    "prompt_completion": {"system": "s", "prompt": "u", "completion": "a"},
    "text": {"text": "plain"},
}


def said(row: dict[str, Any], name: str, **fields: str) -> list[tuple[str, str]]:
    """(role, content) of each message."""
    return [(message["role"], message["content"]) for message in read_row(1, row, name, fields).messages]


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_detected_and_read(name: str) -> None:
    assert detect_layout([ROWS[name]], {}) == (name, {})
    example = read_row(7, ROWS[name], name, {})
    if name == "text":
        assert example == Example(7, text="plain")
    else:
        assert example == Example(7, tuple(TALK))


def test_fields_are_renamed_and_decide_the_format() -> None:
    fields = {"prompt": "question", "completion": "answer"}
    row = {"question": "u", "answer": "a", "text": "decoy"}
    assert detect_layout([row], fields).format == "prompt_completion"
    assert list(read_row(1, row, "prompt_completion", fields).messages) == TALK[1:]
    turns = {"chat": [{"who": "user", "said": "u"}, {"who": "assistant", "said": "a"}]}
    fields = {"messages": "chat", "role": "who", "content": "said"}
    assert list(read_row(1, turns, "messages", fields).messages) == TALK[1:]
    with pytest.raises(ValueError, match="promt"):
        check_fields("auto", {"promt": "question"})
    with pytest.raises(ValueError, match="instruction"):
        check_fields("prompt_completion", {"instruction": "question"})


def test_the_majority_of_the_first_rows_decides() -> None:
    assert detect_layout([{"x": 1}, ROWS["alpaca"], ROWS["text"], ROWS["alpaca"]], {}).format == "alpaca"
    assert detect_layout([{"x": 1}], {}) is None
    # Sets put together from two have the columns of both, and null in those of the other.
    both = {"messages": None, "prompt": None, "completion": None}
    rows = [both | ROWS["prompt_completion"]] * 2 + [both | ROWS["messages"]]
    assert detect_layout(rows, {}).format == "prompt_completion"


@pytest.mark.parametrize(
    ("row", "name", "fields"),
    [
        ({"question": "u", "answer": "a"}, "prompt_completion", {"prompt": "question", "completion": "answer"}),
        ({"problem": "u", "solution": "a"}, "prompt_completion", {"prompt": "problem", "completion": "solution"}),
        ({"input": "u", "output": "a"}, "prompt_completion", {"prompt": "input", "completion": "output"}),
        ({"prompt": "u", "response": "a"}, "prompt_completion", {"prompt": "prompt", "completion": "response"}),
        ({"instruction": "u", "response": "a"}, "alpaca", {"output": "response"}),
        (
            {"instruction": "", "context": "u", "response": "a"},
            "alpaca",
            {"output": "response", "input": "context"},
        ),
        ({"conversation": TALK[1:]}, "messages", {"messages": "conversation"}),
        ({"dialogue": TALK[1:], "id": 3}, "messages", {"messages": "dialogue"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_usual_names_are_found(row: dict[str, Any], name: str, fields: dict[str, str]) -> None:
    assert detect_layout([row], {}) == (name, fields)
    assert said(row, name, **fields) == [("user", "u"), ("assistant", "a")]


def test_a_chat_that_is_no_list_of_messages_is_no_conversation() -> None:
    assert detect_layout([{"chat": "u: a", "text": "t"}], {}).format == "text"


def test_alpaca_joins_instruction_and_input() -> None:
    row: dict[str, Any] = {"instruction": "Translate.", "input": "Haus", "output": "house"}
    assert said(row, "alpaca")[0] == ("user", "Translate.\n\nHaus")
    for blank in (None, "", " \n"):
        assert said(row | {"input": blank}, "alpaca")[0] == ("user", "Translate.")
    for blank in (None, "", " \n"):
        assert said(row | {"instruction": blank}, "alpaca")[0] == ("user", "Haus")
    with pytest.raises(RowError, match="wrong type: `instruction` is null"):
        read_row(1, {"instruction": None, "input": "", "output": "x"}, "alpaca", {})


EARLIER = [("user", "Sweden?"), ("assistant", "Stockholm."), ("user", "Norway?"), ("assistant", "Oslo.")]


@pytest.mark.parametrize(
    "history",
    [
        [["Sweden?", "Stockholm."]],
        [{"instruction": "Sweden?", "output": "Stockholm."}],
        [{"instruction": "Sweden?", "input": None, "output": "Stockholm."}],
        [{"prompt": "Sweden?", "response": "Stockholm."}],
        [{"role": "user", "content": "Sweden?"}, {"role": "assistant", "content": "Stockholm."}],
        [{"from": "Human", "value": "Sweden?"}, {"from": "GPT", "value": "Stockholm."}],
        json.dumps([["Sweden?", "Stockholm."]]),
    ],
    ids=["lists", "alpaca", "null input", "pair", "messages", "sharegpt", "json"],
)
@pytest.mark.parametrize("name", ["alpaca", "prompt_completion"])
def test_a_history_is_earlier_turns_and_learned(name: str, history: Any) -> None:
    rows = {
        "alpaca": {"instruction": "Norway?", "input": "", "output": "Oslo."},
        "prompt_completion": {"prompt": "Norway?", "completion": "Oslo."},
    }
    example = read_row(1, rows[name] | {"history": history, "system": "Be brief."}, name, {})
    assert [(m["role"], m["content"]) for m in example.messages] == [("system", "Be brief."), *EARLIER]
    assert example.learned == ()
    # Under another name, and where there is none.
    assert said(rows[name] | {"before": history}, name, history="before") == EARLIER
    for none in (None, [], "", "[]"):
        assert said(rows[name] | {"history": none}, name) == EARLIER[2:]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (["Sweden?", "Stockholm."], "not a question and an answer: turn 1 of `history`: it is text"),
        ([["Sweden?", "Stockholm."], ["alone"]], "not a question and an answer: turn 2 of `history`: it is a list"),
        ([["Sweden?", None]], "wrong type: turn 1 of `history`: `answer` is null"),
        ([{"a": "Sweden?"}], "not a question and an answer: turn 1 of `history`: it is an object"),
        ("Sweden? Stockholm.", "wrong type: `history` is text, not a list"),
        ("[[", "not JSON: `history` is '[['"),
        ([[" \ud800", "x"]], "lone surrogate: turn 1 of `history`: `question`"),
    ],
)
def test_a_history_that_cannot_be_told_apart_is_refused(history: Any, reason: str) -> None:
    with pytest.raises(RowError) as error:
        read_row(1, {"instruction": "Norway?", "output": "Oslo.", "history": history}, "alpaca", {})
    assert str(error.value).startswith(reason)


def test_prompt_and_completion_may_be_messages() -> None:
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    answered = [{"role": "assistant", "content": "a"}]
    for prompt, completion in ((asked, answered), (asked, "a"), (asked, answered[0])):
        row = {"prompt": prompt, "completion": completion}
        assert list(read_row(1, row, "prompt_completion", {}).messages) == TALK
    assert said({"prompt": "u", "completion": answered}, "prompt_completion") == [("user", "u"), ("assistant", "a")]
    # Answers in the prompt are part of the question, unless they say otherwise.
    before = [TALK[1], TALK[2], {"role": "user", "content": "more"}]
    example = read_row(1, {"prompt": before, "completion": answered}, "prompt_completion", {})
    assert example.learned == (False, False, False, True)
    before[1] = TALK[2] | {"weight": 1}
    assert read_row(1, {"prompt": before, "completion": answered}, "prompt_completion", {}).learned == ()
    with pytest.raises(RowError, match="no assistant text"):
        read_row(1, {"prompt": "u", "completion": [{"role": "user", "content": "x"}]}, "prompt_completion", {})
    with pytest.raises(RowError, match="unknown role: message 2 of `prompt` is by 'clerk'"):
        prompt = [TALK[1], {"role": "clerk", "content": "x"}]
        read_row(1, {"prompt": prompt, "completion": "a"}, "prompt_completion", {})


def test_the_system_column_leads_every_conversation() -> None:
    assert said({"system": "s", "messages": TALK[1:]}, "messages")[0] == ("system", "s")
    assert said({"system": "s", "messages": TALK}, "messages") == [("system", "s"), ("user", "u"), ("assistant", "a")]
    assert said({"system": " ", "messages": TALK[1:]}, "messages")[0] == ("user", "u")
    assert said({"system_prompt": "s", "prompt": "u", "completion": "a"}, "prompt_completion")[0] == ("system", "s")
    assert said({"rules": "s", "system": "no", **ROWS["messages"]}, "messages", system="rules")[0] == ("system", "s")
    marked = [{"role": "assistant", "content": "x", "weight": 0}, *TALK[1:]]
    assert read_row(1, {"system": "s", "messages": marked}, "messages", {}).learned == (False, False, False, True)
    for row in ({"system": "other", "messages": TALK}, {"system": "s", "system_prompt": "t", "messages": TALK[1:]}):
        with pytest.raises(RowError, match="two system messages"):
            read_row(1, row, "messages", {})


def test_thoughts_in_a_column_are_those_of_the_answer() -> None:
    row = {"prompt": "7 * 8?", "completion": "56"}
    for name in ("reasoning", "thinking", "reasoning_content"):
        (_, answer) = read_row(1, row | {name: "Seven eights."}, "prompt_completion", {}).messages
        assert answer == {"role": "assistant", "content": "56", "reasoning_content": "Seven eights."}
    named = read_row(1, row | {"cot": "Seven eights."}, "prompt_completion", {"reasoning": "cot"})
    assert named.messages[1]["reasoning_content"] == "Seven eights."
    for switch in ("on", "Off", "high", "", None, True):
        assert "reasoning_content" not in read_row(1, row | {"reasoning": switch}, "prompt_completion", {}).messages[1]
    with pytest.raises(RowError, match="two different thoughts"):
        read_row(1, row | {"reasoning": "one", "thinking": "another"}, "prompt_completion", {})


@pytest.mark.parametrize("name", FORMATS)
def test_the_weight_of_a_row(name: str) -> None:
    for weight in (1, 1.0, True, None, "1", "true", ""):
        assert read_row(1, ROWS[name] | {"weight": weight}, name, {}) == read_row(1, ROWS[name], name, {})
    for weight in (0, 0.0, False, "0", "False"):
        with pytest.raises(RowError, match=r"^no answer to learn from \(the row has weight 0\)$"):
            read_row(1, ROWS[name] | {"weight": weight}, name, {})
    for weight in (0.5, 2, -1, float("nan")):
        with pytest.raises(
            RowError, match=r"^weight other than 0 and 1: the row's `weight` is .*fields: {weight: NAME}"
        ):
            read_row(1, ROWS[name] | {"weight": weight}, name, {})
    # The way out that the message names, and a column of another name.
    assert read_row(1, ROWS[name] | {"weight": 70.5}, name, {"weight": "none"}) == read_row(1, ROWS[name], name, {})
    with pytest.raises(RowError, match="weight 0"):
        read_row(1, ROWS[name] | {"importance": 0}, name, {"weight": "importance"})


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("messages", {"messages": "u"}, "wrong type: `messages` is text, not a list"),
        ("messages", {"messages": ["u"]}, "wrong type: message 1 is text, not an object"),
        ("messages", {"messages": []}, "no assistant text"),
        ("messages", {"messages": TALK[:2]}, "no assistant text"),
        ("messages", {"messages": [*TALK, {"role": "clerk", "content": "x"}]}, "unknown role: message 4 is by 'clerk'"),
        ("messages", {"messages": [{"role": "user"}]}, "missing field: message 1: `content`"),
        ("messages", {"messages": [{"content": "x"}]}, "missing field: message 1: `role`"),
        ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "wrong type: message 1: `role` is a list"),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": None}]},
            "wrong type: message 1: `content` is null",
        ),
        ("messages", {"messages": [{"role": "user", "content": "\0"}]}, "NUL character: message 1: `content`"),
        (
            "messages",
            {"messages": [TALK[1], {"role": "user", "content": "\ud83d"}]},
            "lone surrogate: message 2",
        ),
        ("sharegpt", {"conversations": [{"from": "", "value": "x"}]}, "unknown role: message 1"),
        ("alpaca", {"instruction": "u", "output": 3}, "wrong type: `output` is a number"),
        ("prompt_completion", {"prompt": 3, "completion": "x"}, "wrong type: `prompt` is a number"),
        ("prompt_completion", {"completion": "x"}, "missing field: `prompt`; it has 'completion'"),
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
    assert asked == "what is it?"  # held-out prompts stay the same ones from version to version
    assert asked == prompt(("user", "what is it?"), ("assistant", "another answer"), ("user", "more"))
    assert asked != prompt(("user", "what is it?"), ("assistant", "x"), ("user", "more"), ("assistant", "y"))
    assert prompt(("user", "a b"), ("assistant", "x")) != prompt(("user", "a"), ("user", "b"), ("assistant", "x"))


def test_a_prompt_has_the_calls_the_results_the_tools_and_the_order_of_the_roles() -> None:
    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "arguments": arguments}}

    user, answer = {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "Yes."}
    result = {"role": "tool", "content": "wet"}
    asks = {"role": "assistant", "content": "", "tool_calls": [call("weather", town="Bergen", day=1)]}
    base = Example(1, (user, asks, result, answer))
    others = [
        Example(1, (user, asks | {"tool_calls": [call("weather", town="Oslo", day=1)]}, result, answer)),
        Example(1, (user, asks | {"tool_calls": [call("news", town="Bergen", day=1)]}, result, answer)),
        Example(1, (user, asks, result | {"content": "dry"}, answer)),
        Example(1, (user, asks, result | {"role": "user"}, answer)),
        Example(1, (user | {"role": "developer"}, asks, result, answer)),
        Example(1, (user, asks | {"tool_calls": []}, result, answer)),
        Example(1, (user, asks, result, answer), tools=({"type": "function", "function": {"name": "weather"}},)),
    ]
    assert len({base.prompt, *(other.prompt for other in others)}) == 1 + len(others)
    turned = asks | {"tool_calls": [call("weather", day=1, town="Bergen")], "reasoning_content": "I look."}
    assert Example(1, (user, turned, result, answer)).prompt == base.prompt


def test_texts_and_size_take_in_all_that_was_written() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Tromsø"}}}
    answer = {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [call]}
    example = Example(1, ({"role": "user", "content": ""}, answer))
    assert example.texts == ["", "I look.", 'weather {"town": "Tromsø"}']
    tools = ({"type": "function", "function": {"name": "weather", "description": "x" * 500}},)
    assert Example(1, example.messages, tools=tools).num_characters > example.num_characters + 500
