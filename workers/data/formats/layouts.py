"""Layouts of conversations: the fields of a row, and how they become a Talk.

A new layout is one function and one line in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from workers.data.formats.turns import REASONING, Talk, add_turns
from workers.data.formats.values import (
    Names,
    Row,
    RowError,
    field_of,
    holds_json_list,
    is_blank,
    is_clean,
    kind_of,
    optional_text,
    parse_json,
    text_of,
)

_PAIR_NAMES = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("user", "assistant"),
)
# Values of columns named `reasoning` that are switches of the data set's maker, not thoughts.
_SWITCHES = {"on", "off", "true", "false", "yes", "no", "none", "low", "medium", "high"}
_SYSTEM_NAMES = ("system", "system_prompt")
TOOLS_NAMES = ("tools", "functions")
FURTHER = frozenset((*_SYSTEM_NAMES, *REASONING, *TOOLS_NAMES, "history", "weight"))
"""Fields of any format that are read in addition to its required ones."""


@dataclass(frozen=True)
class Format:
    """How to read one layout: its required and optional fields, and the function that reads messages."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Row, Names, Talk], None] | None  # None: a plain document


def _turns(row: Row, names: Names, talk: Talk, list_name: str, role_name: str, text_name: str) -> None:
    name = names(list_name)
    add_turns(talk, field_of(row, name), name, names(role_name), names(text_name))
    if talk.has_further:
        talk.lead(_system(row, names))


_messages = partial(_turns, list_name="messages", role_name="role", text_name="content")
_sharegpt = partial(_turns, list_name="conversations", role_name="from", text_name="value")


def _alpaca(row: Row, names: Names, talk: Talk) -> None:
    further = optional_text(row, names("input"))
    name = names("instruction")
    instruction = "" if further and name in row and row[name] is None else text_of(row, name)
    if talk.has_further:
        _add_history(talk, row.get(names("history")), names("history"))
    if further and further.strip():
        talk.say("user", f"{instruction}\n\n{further}" if instruction.strip() else further)
    else:
        talk.say("user", instruction)
    talk.say("assistant", text_of(row, names("output")))
    if talk.has_further:
        _add_thoughts(talk, row, names)
        talk.lead(_system(row, names))


def _prompt_completion(row: Row, names: Names, talk: Talk) -> None:
    if talk.has_further:
        _add_history(talk, row.get(names("history")), names("history"))
    num_before = len(talk.messages)
    if _add_part(row, names("prompt"), "user", talk):
        for index in range(num_before, len(talk.messages)):
            if talk.messages[index]["role"] == "assistant":
                talk.marks.setdefault(index, False)  # a prompt is not trained on, unless it is marked so
    _add_part(row, names("completion"), "assistant", talk)
    if talk.has_further:
        _add_thoughts(talk, row, names)
        talk.lead(_system(row, names))


def _add_part(row: Row, name: str, role: str, talk: Talk) -> bool:
    """Add a prompt or a completion (text, a message or a list of messages); return whether it is messages."""
    part = row.get(name)
    if type(part) is str and is_clean(part):  # most of them
        talk.messages.append({"role": role, "content": part})
        return False
    if not isinstance(part, dict | list):
        talk.say(role, text_of(row, name))
        return False
    add_turns(talk, [part] if isinstance(part, dict) else part, name, "role", "content", f" of `{name}`")
    return True


_OF_A_PAIR = ("system", "history", "reasoning", "tools", "weight")
FORMATS = {
    "messages": Format(("messages",), ("role", "content", "system", "tools", "weight"), _messages),
    "sharegpt": Format(("conversations",), ("from", "value", "system", "tools", "weight"), _sharegpt),
    "alpaca": Format(("instruction", "output"), ("input", *_OF_A_PAIR), _alpaca),
    "prompt_completion": Format(("prompt", "completion"), _OF_A_PAIR, _prompt_completion),
    "text": Format(("text",), ("weight",), None),
}


def thoughts_in(row: Row, name: str = "reasoning") -> dict[str, str]:
    """The fields of a row with thoughts: text that is not a switch of the data set's maker."""
    found = {key: row.get(key) for key in (name, *(REASONING if name == "reasoning" else ()))}
    texts = {key: text for key, text in found.items() if isinstance(text, str)}
    return {key: text for key, text in texts.items() if text.strip() and text.strip().lower() not in _SWITCHES}


def _add_thoughts(talk: Talk, row: Row, names: Names) -> None:
    """Add thoughts from a field of the row to its answer."""
    found = thoughts_in(row, names("reasoning"))
    if not found:
        return
    thoughts = {key: text_of(row, key) for key in found}
    if len(set(thoughts.values())) > 1:
        raise RowError(f"two different thoughts: the row has {', '.join(f'`{key}`' for key in thoughts)}")
    answer = talk.messages[-1] if talk.messages else {}
    if answer.get("role") == "assistant":
        text = next(iter(thoughts.values()))
        if answer.setdefault("reasoning_content", text) != text:
            raise RowError("two different thoughts: the row and its last message have different ones")


def _add_history(talk: Talk, history: Any, name: str) -> None:
    """Add earlier turns: a list (or a JSON list) of messages, or of pairs of question and answer."""
    if is_blank(history):
        return
    if holds_json_list(history):
        history = parse_json(history, f"`{name}`")
    if not isinstance(history, list):
        raise RowError(f"wrong type: `{name}` is {kind_of(history)}, not a list")
    if all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in history):
        add_turns(talk, history, name, "role", "content", f" of `{name}`")
        return
    for number, pair in enumerate(history, start=1):
        where = f"turn {number} of `{name}`: "
        if isinstance(pair, list) and len(pair) == 2:
            pair = dict(zip(("question", "answer"), pair, strict=True))
        known = [names for names in _PAIR_NAMES if isinstance(pair, dict) and all(key in pair for key in names)]
        if not known:
            raise RowError(f"not a question and an answer: {where}it is {kind_of(pair)}")
        question, answer = (text_of(pair, key, where) for key in known[0])
        further = pair.get("input") if known[0] == _PAIR_NAMES[0] else None
        talk.say("user", question if is_blank(further) else f"{question}\n\n{text_of(pair, 'input', where)}")
        talk.say("assistant", answer)


def _system(row: Row, names: Names) -> str:
    name = names("system")
    found = {key: optional_text(row, key) for key in (_SYSTEM_NAMES if name == "system" else (name,)) if key in row}
    texts = {text.strip(): text for text in found.values() if text.strip()}
    if len(texts) > 1:
        raise RowError(f"two system messages: {' and '.join(f'`{key}`' for key in found)} differ")
    return next(iter(texts.values()), "")
