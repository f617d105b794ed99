"""Messages in the words of many files: roles, parts, thoughts, calls, tools, and which answers are learned."""

import json
from datetime import date
from typing import Any

import pytest

from workers.config.data import TrainOn
from workers.data.formats import read_row
from workers.data.formats.example import Example, Message
from workers.data.formats.values import RowError

ASK = {"role": "user", "content": "Which trains go north?"}
ANSWER = {"role": "assistant", "content": "The 7:15."}
CALL = {"type": "function", "function": {"name": "trains", "arguments": {"to": "Bodø", "stops": [1, None]}}}
TOOL = {"type": "function", "function": {"name": "trains", "parameters": {"type": "object", "properties": {}}}}


def read(*turns: Any, train_on: TrainOn = "all", is_columnar: bool = False, **further: Any) -> Example:
    row = {"messages": list(turns), **further}
    return read_row(1, row, "messages", {}, train_on=train_on, is_columnar=is_columnar)


def second(*turns: Any) -> Message:
    return read(ASK, *turns).messages[1]


def refused(*turns: Any, **further: Any) -> str:
    with pytest.raises(RowError) as error:
        read(*turns, **further)
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "role"),
    [
        (("human", "Human", "USER", " user "), "user"),
        (("gpt", "GPT", "Assistant", "model", "bot", "ChatGPT", "ai"), "assistant"),
        (("System",), "system"),
        (("developer", "Developer"), "developer"),
        (("tool", "function", "observation", "Observation", "ipython", "tool_response"), "tool"),
    ],
)
def test_roles_by_the_words_of_the_files(words: tuple[str, ...], role: str) -> None:
    for word in words:
        turns = [{"from": word, "value": "x"}, {"from": "gpt", "value": "y"}]
        for row, name in (({"conversations": turns}, "sharegpt"), ({"messages": turns}, "messages")):
            assert read_row(1, row, name, {}).messages[0] == {"role": role, "content": "x"}
        other = {"conversations": [{"role": word, "content": "x"}, ANSWER]}
        assert read_row(1, other, "sharegpt", {}).messages[0] == {"role": role, "content": "x"}
        # With the keys that a column store fills in.
        assert read({"role": word, "content": "x", "weight": None, "tool_calls": None}, ANSWER).messages[0] == {
            "role": role,
            "content": "x",
        }


def test_the_first_key_with_a_value_counts() -> None:
    assert second({"role": None, "from": "gpt", "content": None, "value": "x"}) == {"role": "assistant", "content": "x"}
    assert second({"role": "assistant", "text": "x"}) == {"role": "assistant", "content": "x"}
    assert second({"role": "assistant", "from": "alice", "content": "x"}) == {"role": "assistant", "content": "x"}


def test_a_list_of_messages_may_be_written_as_json() -> None:
    for turns in ([ASK, ANSWER], [{"role": "user", "content": ["Which trains go north?"]}, ANSWER]):
        assert read_row(1, {"messages": json.dumps(turns)}, "messages", {}).messages == (ASK, ANSWER)
    with pytest.raises(RowError, match=r"not JSON: `messages` is '\[{'"):
        read_row(1, {"messages": "[{"}, "messages", {})
    with pytest.raises(RowError, match="nested too deep"):
        read_row(1, {"messages": "[" * 100_000}, "messages", {})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "The "}, {"type": "text", "text": "7:15."}], "The 7:15."),
        ([{"type": "input_text", "text": "The "}, {"type": "output_text", "text": "7:15."}], "The 7:15."),
        ([{"text": "The "}, "7:15."], "The 7:15."),
        ([{"type": "text", "text": "A\n"}, {"type": "text", "text": "\nB", "image_url": None}], "A\n\nB"),
        ([], ""),
    ],
)
def test_parts_of_text_are_joined(content: Any, text: str) -> None:
    assert read(ASK, ANSWER, {"role": "user", "content": content}).messages[2]["content"] == text


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"type": "image_url", "image_url": {"url": "x.png"}}, "an image"),
        ({"type": "image"}, "an image"),
        ({"type": "input_audio", "input_audio": {}}, "a sound"),
        ({"type": "video_url"}, "a video"),
        ({"type": "file", "file": {}}, "a file"),
        ({"type": "tool_use", "name": "trains"}, "of type 'tool_use'"),
        ({"type": ["text"], "text": "x"}, "of type \"['text']\""),
        ({"url": "x"}, "of type 'None'"),
        ({"type": "thinking", "thinking": "x"}, "of type 'thinking'"),  # of a user
    ],
)
def test_other_parts_are_refused_by_number_and_kind(part: Any, what: str) -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "Look:"}, part]}
    assert refused(turn, ANSWER) == f"not text: part 2 of message 1 is {what}; raymix trains on text"
    assert refused(ASK, ANSWER, turn).startswith("not text: part 2 of message 3 is ")


def test_parts_that_are_broken_are_refused() -> None:
    assert refused({"role": "user", "content": [3]}, ANSWER).startswith("wrong type: part 1 of message 1 is a number")
    text = {"role": "user", "content": [{"type": "text", "text": None}]}
    assert refused(text, ANSWER).startswith("wrong type: part 1 of message 1: `text` is null")
    assert refused({"role": "user", "content": {"$ref": "/etc/passwd"}}, ANSWER).startswith("wrong type: message 1")
    assert refused(ASK | {"images": ["a.png"]}, ANSWER) == "not text: message 1 has `images`; raymix trains on text"
    assert read(ASK | {"images": []}, ANSWER).messages[0] == ASK


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning", "reasoning_text", "thought"])
def test_thoughts_by_any_name(name: str) -> None:
    assert second(ANSWER | {name: "Bodø is north."}) == ANSWER | {"reasoning_content": "Bodø is north."}
    for blank in (None, "", " \n"):
        assert second(ANSWER | {name: blank}) == ANSWER
    alone = {"role": "assistant", "content": None, name: "Hm."}
    assert second(alone) == {"role": "assistant", "content": "", "reasoning_content": "Hm."}


def test_thoughts_that_are_out_of_place_are_refused() -> None:
    assert refused(ASK | {"thinking": "x"}, ANSWER).startswith("`thinking` out of place: message 1 is by the user")
    assert refused(ASK, ANSWER | {"thinking": True}).startswith("wrong type: message 2: `thinking` is true or false")
    assert refused(ASK, ANSWER | {"thinking": "x", "reasoning": "y"}).startswith("two different thoughts: message 2")
    assert refused(ASK, ANSWER | {"thinking": "\0"}).startswith("NUL character: message 2: `thinking`")
    assert second(ANSWER | {"thinking": "x", "reasoning": "x"}) == ANSWER | {"reasoning_content": "x"}
    parts = [{"type": "thinking", "thinking": "Hm. "}, {"type": "reasoning", "text": "Yes."}, {"text": "The 7:15."}]
    assert second(ANSWER | {"content": parts}) == ANSWER | {"reasoning_content": "Hm. Yes."}


ARGUMENTS = CALL["function"]["arguments"]  # type: ignore[index]


@pytest.mark.parametrize(
    "further",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [{"function": {"name": "trains", "arguments": json.dumps(ARGUMENTS)}}]},
        {"tool_calls": [{"name": "trains", "arguments": ARGUMENTS}]},
        {"tool_calls": [{"name": "trains", "parameters": ARGUMENTS, "id": None, "type": None}]},
        {"tool_calls": [{"function": "trains", "args": ARGUMENTS}]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": CALL},
        {"function_call": {"name": "trains", "arguments": json.dumps(ARGUMENTS)}, "tool_calls": []},
    ],
)
@pytest.mark.parametrize("content", [None, ""])
def test_calls_in_every_dress(further: dict[str, Any], content: str | None) -> None:
    expected = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert second({"role": "assistant", "content": content, **further}) == expected
    assert second({"role": "assistant", **further}) == expected


@pytest.mark.parametrize("role", ["function_call", "tool_call", "Function_Call"])
def test_a_call_that_is_a_turn(role: str) -> None:
    for value in (json.dumps(CALL["function"]), json.dumps([CALL, CALL]), CALL["function"]):
        turns = [{"from": "human", "value": "x"}, {"from": role, "value": value}]
        message = read_row(1, {"conversations": turns}, "sharegpt", {}).messages[1]
        num_calls = 2 if isinstance(value, str) and value[0] == "[" else 1
        assert message == {"role": "assistant", "content": "", "tool_calls": [CALL] * num_calls}
    thinks = [turns[0], {"from": role, "value": CALL, "thinking": "North.", "name": "planner"}]
    assert read_row(1, {"conversations": thinks}, "sharegpt", {}).messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL],
        "reasoning_content": "North.",
        "name": "planner",
    }
    with pytest.raises(RowError, match=r"^two lists of calls: message 2"):
        twice = [turns[0], {"from": role, "value": CALL, "tool_calls": [CALL]}]
        read_row(1, {"conversations": twice}, "sharegpt", {})
    with pytest.raises(RowError, match=r"^not JSON: message 2: the call is 'trains\(north\)'"):
        turns[1]["value"] = "trains(north)"
        read_row(1, {"conversations": turns}, "sharegpt", {})
    with pytest.raises(RowError, match=r"^not a tool call: message 2 calls nothing"):
        turns[1]["value"] = "[]"
        read_row(1, {"conversations": turns}, "sharegpt", {})


def test_what_belongs_to_calls_is_kept() -> None:
    asks = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}, {"id": 7, **CALL}]}
    result = {"role": "tool", "content": "7:15", "tool_call_id": "c1", "name": "trains"}
    messages = read(ASK | {"name": "ann"}, asks, result, ANSWER).messages
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["c1", "7"]
    assert messages[0] == ASK | {"name": "ann"} and messages[2] == result
    assert read(ASK, asks, {"role": "function", "name": "trains", "content": "x"}).messages[2] == {
        "role": "tool",
        "content": "x",
        "name": "trains",
    }
    for empty in (None, "", {}, "{}"):
        called = second({"role": "assistant", "tool_calls": [{"name": "now", "arguments": empty}]})
        assert called["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"name": "trains", "arguments": "{north}"}, "not JSON: message 2, call 1: the arguments of 'trains'"),
        ({"name": "trains", "arguments": "[1]"}, "not a tool call: message 2, call 1: the arguments of 'trains' are a"),
        ({"arguments": {}}, "not a tool call: message 2, call 1 names no function"),
        ({"type": "code_interpreter", "name": "x"}, "not a tool call: message 2, call 1 is a code_interpreter"),
        (3, "not a tool call: message 2, call 1 is a number"),
        ({"name": "trains", "arguments": {"to": "\0"}}, "NUL character: message 2, call 1"),
        ({"name": "trains", "arguments": {"\ud800": 1}}, "lone surrogate: message 2, call 1"),
        ({"name": "trains", "arguments": '{"to": "\\u0000"}'}, "NUL character: message 2, call 1"),
        ({"name": "trains", "arguments": {"on": [date(2026, 1, 1)]}}, "wrong type: message 2, call 1: the arguments"),
        ({"name": "trains", "id": ["x"]}, "wrong type: message 2, call 1: `id` is a list"),
        ({"name": "t", "arguments": '{"a":' * 99_999 + "1" + "}" * 99_999}, "nested too deep: message 2, call 1"),
    ],
)
def test_calls_that_are_none_are_refused(call: Any, reason: str) -> None:
    assert refused(ASK, {"role": "assistant", "content": "", "tool_calls": [call]}).startswith(reason)


def test_arguments_nested_without_end_are_refused() -> None:
    nested: Any = 1
    for depth in range(900):
        nested = {"a": nested} if depth % 2 else [nested]
    assert refused(ASK, {"role": "assistant", "tool_calls": [{"name": "t", "arguments": {"a": nested}}]}).startswith(
        "nested too deep: message 2, call 1"
    )
    assert refused(ASK, ANSWER, tools=[{"name": "t", "parameters": nested}]).startswith("nested too deep: tool 1")


def test_calls_and_tools_out_of_place_are_refused() -> None:
    assert refused(ASK | {"tool_calls": [CALL]}, ANSWER).startswith("`tool_calls` out of place: message 1")
    assert refused(ASK | {"tools": [TOOL]}, ANSWER).startswith("tools out of place: message 1 is by the user")
    both = ANSWER | {"tool_calls": [CALL], "function_call": CALL["function"]}
    assert refused(ASK, both).startswith("two lists of calls: message 2")
    assert refused(ASK | {"name": 3}, ANSWER).startswith("wrong type: message 1: `name` is a number")


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [TOOL["function"]],
        [{"type": "function", **TOOL["function"]}],  # type: ignore[dict-item]
        [{"function": TOOL["function"]}],
    ],
)
def test_tools_in_every_dress(tools: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    for name in ("tools", "functions"):
        assert read(ASK, ANSWER, **{name: tools}).tools == (TOOL,)
        with_tools = read(system | {name: tools}, ASK, ANSWER)
        assert with_tools.tools == (TOOL,) and with_tools.messages[0] == system
    assert read(ASK, ANSWER, tools=tools, functions=[TOOL]).tools == (TOOL,)
    assert read_row(1, {"messages": [ASK, ANSWER], "api": tools}, "messages", {"tools": "api"}).tools == (TOOL,)
    assert read_row(1, {"prompt": "u", "completion": "a", "tools": tools}, "prompt_completion", {}).tools == (TOOL,)
    assert read_row(1, {"instruction": "u", "output": "a", "tools": tools}, "alpaca", {}).tools == (TOOL,)


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("trains", "not JSON: `tools` is 'trains'"),
        ('{"a": 1}', "wrong type: `tools` is an object, not a list"),
        (["trains"], "not JSON: tool 1 of `tools` is 'trains'"),
        ([TOOL, 3], "not a tool: tool 2 of `tools` is a number"),
        ([{"type": "web_search"}], "not a tool: tool 1 of `tools` is a web_search"),
        ([{"description": "x"}], "not a tool: tool 1 of `tools` has no name"),
        ([{"name": "x", "description": "\0"}], "NUL character: tool 1 of `tools`"),
    ],
)
def test_tools_that_are_none_are_refused(tools: Any, reason: str) -> None:
    assert refused(ASK, ANSWER, tools=tools).startswith(reason)
    assert refused(ASK, ANSWER, tools=[TOOL], functions=[{"name": "other"}]).startswith("two lists of tools")
    for none in (None, "", [], "[]"):
        assert read(ASK, ANSWER, tools=none).tools == ()


def test_nulls_are_filling_in_a_column_store_alone() -> None:
    filled = {"name": "trains", "arguments": {"to": "Bodø", "day": None}}
    asks = {"role": "assistant", "tool_calls": [filled]}
    tool = {"name": "trains", "parameters": {"properties": {"to": {"type": "string", "default": None}}}}
    for is_columnar in (False, True):
        example = read(ASK, asks, tools=[tool], is_columnar=is_columnar)
        arguments = example.messages[1]["tool_calls"][0]["function"]["arguments"]
        to = example.tools[0]["function"]["parameters"]["properties"]["to"]
        assert ("day" in arguments, "default" in to) == (not is_columnar, not is_columnar)
    # What was written as JSON has no filling.
    written = read(ASK, ANSWER, tools=[json.dumps(tool)], is_columnar=True).tools
    assert written == read(ASK, ANSWER, tools=json.dumps([tool]), is_columnar=True).tools
    assert written == read(ASK, ANSWER, tools=[tool]).tools
    asks = {"role": "assistant", "tool_calls": [{"name": "trains", "arguments": '{"day": null}'}]}
    assert read(ASK, asks, is_columnar=True).messages[1]["tool_calls"][0]["function"]["arguments"] == {"day": None}


def talk(*marks: dict[str, Any]) -> list[dict[str, Any]]:
    return [turn for mark in marks for turn in (ASK, ANSWER | mark)]


@pytest.mark.parametrize(
    ("leave", "learn"),
    [
        ({"weight": 0}, {"weight": 1}),
        ({"weight": 0.0}, {"weight": 1.0}),
        ({"weight": False}, {"weight": True}),
        ({"weight": "0"}, {"weight": "1"}),
        ({"train": False}, {"train": True}),
        ({"trainable": False}, {"trainable": None}),
        ({"training": False, "weight": 0}, {}),
        ({"loss": False}, {"loss": True}),
        ({"masked": True}, {"masked": False}),
    ],
)
def test_marks_decide_which_answers_are_learned(leave: dict[str, Any], learn: dict[str, Any]) -> None:
    assert read(*talk(leave, learn)).learned == (False, False, False, True)
    assert read(*talk(learn, leave)).learned == (False, True, False, False)
    assert read(*talk(learn, learn)).learned == ()  # as if nothing had been said
    assert read(ASK | leave, ANSWER).learned == ()
    assert refused(*talk(leave, leave)) == "no answer to learn from (all have weight 0)"
    assert read(*talk(leave, learn)).messages == tuple(talk({}, {}))
    as_sharegpt = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", **leave}]
    row = {"conversations": [*as_sharegpt, {"from": "gpt", "value": "z", **learn}]}
    assert read_row(1, row, "sharegpt", {}).learned == (False, False, True)


def test_a_call_can_be_marked_and_learned_alone() -> None:
    asks = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert read(ASK, asks, {"role": "tool", "content": "x"}, ANSWER | {"weight": 0}).learned == (
        False,
        True,
        False,
        False,
    )
    turns = [{"from": "human", "value": "x"}, {"from": "function_call", "value": json.dumps(CALL), "weight": 0}]
    row = {"conversations": [*turns, {"from": "gpt", "value": "y"}]}
    assert read_row(1, row, "sharegpt", {}).learned == (False, False, True)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (
            talk({"weight": 0.5}),
            "weight other than 0 and 1: message 2: `weight` is 0.5; raymix has no fractional",
        ),
        (talk({}, {"weight": 2}), "weight other than 0 and 1: message 4: `weight` is 2"),
        (talk({"loss": -1}), "weight other than 0 and 1: message 2: `loss` is -1"),
        (talk({"train": "maybe"}), "wrong type: message 2: `train` is text, not 0, 1, true or false"),
        (talk({"weight": [1]}), "wrong type: message 2: `weight` is a list"),
        (
            talk({"weight": 1, "train": False}),
            "contradiction: message 2 is included and excluded, by `weight`",
        ),
        (talk({"masked": True, "weight": 1}), "contradiction: message 2 is included and excluded"),
        ([ASK | {"train": True}, ANSWER], "only answers are trained on: message 1 is by the user, but `train` inc"),
        ([ASK | {"weight": 0.3}, ANSWER], "weight other than 0 and 1: message 1"),
        (
            [*talk({}), {"role": "tool", "content": "x", "weight": 1}],
            "only answers are trained on: message 3",
        ),
        (talk({"train_detail": [{"begin_offset": 0}]}), "parts of an answer are marked: message 2 has `train_detail`"),
        (talk({"label": False}), "preference data: message 2 has `label`; use `weight` 0 or 1"),
    ],
)
def test_marks_that_raymix_cannot_follow_are_refused(turns: list[Any], reason: str) -> None:
    assert refused(*turns).startswith(reason)


def test_train_on_last() -> None:
    assert read(*talk({}, {}), train_on="last").learned == (False, False, False, True)
    assert read(*talk({}), train_on="last").learned == ()
    assert read(*talk({}, {}), ASK, train_on="last").learned == (False, False, False, True, False)
    assert read(*talk({"weight": 0}, {"weight": 1}), train_on="last").learned == (False, False, False, True)
    assert refused(*talk({}, {"weight": 0}), train_on="last") == (
        "no answer to learn from (train_on is last, and the last answer has weight 0)"
    )
    assert refused(*talk({}), {"role": "assistant", "content": " "}, train_on="last") == (
        "no answer to learn from (train_on is last, and the last answer is blank)"
    )
    assert refused(ASK, train_on="last") == "no assistant text"
    row = {"instruction": "u", "output": "a", "history": [["x", "y"]]}
    assert read_row(1, row, "alpaca", {}, train_on="last").learned == (False, False, False, True)
