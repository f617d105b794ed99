"""What `format: auto` does not guess: which of two layouts, which answers are good, which columns may be left out.

With a named format the user has decided: its fields are read and nothing else is checked.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from workers.data.formats.detection import Layout, find_layouts
from workers.data.formats.example import shown_value
from workers.data.formats.layouts import thoughts_in
from workers.data.formats.turns import MEDIA, ROLES
from workers.data.formats.values import Row, is_blank

_ANSWER = "(?:response|answer|completion|output|message|conversation|text|reply|generation|ref)s?"
_GOOD = "chosen|preferred|winner|winning|better"
_BAD = "rejected|(?:non|not|dis|un)_?preferred|loser|losing|worse"
_PAIRED = re.compile(rf"(?:{_ANSWER}_)?(?:{_GOOD}|{_BAD})(?:_{_ANSWER})?(?:_id)?")
_GOOD_ONE = re.compile(rf"(?:{_ANSWER}_)?(?:{_GOOD})(?:_{_ANSWER})?")
_NUMBERED = re.compile(rf"(.{{0,40}}{_ANSWER})_?([ab]|[jk]|\d)")
_MARK = re.compile(
    "(?:is_)?(?:labels?|kto_tag|(?:un)?desirable|chosen|preferred|accepted|rejected|(?:in)?correct|good|bad|thumbs_(?:up|down)"
    "|upvoted|liked|winner|train|trainable)(?:_answer|_response)?"
)
_BAD_MARK = re.compile("(?:is_)?(?:undesirable|rejected|incorrect|bad|thumbs_down)(?:_answer|_response)?")
_GOOD_WORDS = {"true", "1", "yes", "good", "chosen", "preferred", "accepted", "desirable"}
_BAD_WORDS = {"false", "0", "-1", "no", "bad", "rejected", "undesirable"}
_LOST = (*MEDIA, "documents", "chat_template_kwargs")
_BEHIND_THE_QUESTION = ("context", "input", "passage")
_LOST_FROM_A_PAIR = (*_BEHIND_THE_QUESTION, "instruction", "options", "choices")
_MAX_NAMES, _MAX_NAME = 1000, 100
_PROMPTS = ("prompt", "question", "instruction", "query", "input", "conversations", "conversation", "messages")


def find_refusal(rows: Sequence[Any], fields: Mapping[str, str]) -> str | None:
    """Why the layout of these rows must not be guessed, and what to write instead; None if it may be."""
    layouts = find_layouts(rows, fields)
    objects = [row for row in rows if isinstance(row, dict)]
    return (
        _paired(objects, layouts)
        or _marked(objects, layouts)
        or _fits_two(layouts)
        or (_passed_over(objects, layouts[0]) if layouts else None)
    )


def harmless_names(rows: Sequence[Any]) -> list[str]:
    """Names of fields that `find_refusal` has judged in these rows: other rows may have them too."""
    names: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            names[name] = names.get(name, False) or not _is_suspect(name) or not is_blank(value)
    found = sorted(name for name, is_harmless in names.items() if is_harmless and len(name) <= _MAX_NAME)
    return found[:_MAX_NAMES]  # sent with every task; rows with other fields are checked, which is only slower


def _is_suspect(name: str) -> bool:
    plain = _plain(name)
    if plain in (*_LOST, *_LOST_FROM_A_PAIR, "history") or thoughts_in({name: "a thought"}):
        return True
    return any(pattern.fullmatch(plain) for pattern in (_PAIRED, _NUMBERED, _MARK))


def _plain(name: str) -> str:
    """A name in snake case: chosenResponse and Chosen-Response become chosen_response."""
    return re.sub(r"[\W_]+", "_", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)).strip("_").lower()


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Field name -> its values that are not blank."""
    columns: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if not is_blank(value):
                columns[name].append(value)
    return columns


def _paired(rows: Sequence[Row], layouts: list[Layout]) -> str | None:
    columns = {name: values for name, values in _columns(rows).items() if not _is_mark(name, values)}
    used = {column for layout in layouts[:1] for column in layout.fields.values()}
    names = [name for name in columns if name not in used and _PAIRED.fullmatch(_plain(name))] or _numbered(columns)
    if not names:
        return None
    good = next((name for name in names if _GOOD_ONE.fullmatch(_plain(name))), None)
    advice = layouts[0].settings() if layouts else None
    if good:
        advice = _settings_for(good, columns)
    if advice is None:
        remedy = (
            "Put the good ones into a separate column and name it: format: prompt_completion, fields: {completion: "
            "NAME}"
        )
    else:
        remedy = f"To train on the good ones only, write {advice}"
    named = " and ".join(f"`{name}`" for name in names)
    return f"preference data: {named} hold good and bad answers, and raymix must not guess which to use. {remedy}"


def _numbered(columns: Mapping[str, list[Any]]) -> list[str]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in columns:
        if match := _NUMBERED.fullmatch(_plain(name)):
            found[match.group(1)].append(name)
    return next((names for names in found.values() if len(names) > 1), [])


def _settings_for(good: str, columns: Mapping[str, list[Any]]) -> str | None:
    """How to read only the column of good answers."""
    value = columns[good][0]
    if isinstance(value, list) and any(_is_by_user(turn) for turn in value):
        return Layout("messages", {"messages": good}).settings()
    prompt = next((name for name in _PROMPTS if name in columns and name != good), None)
    if not isinstance(value, str | list | dict) or (prompt and not isinstance(columns[prompt][0], str | list)):
        return None
    if prompt:
        return Layout("prompt_completion", {"prompt": prompt, "completion": good}).settings()
    return Layout("text", {"text": good}).settings() if isinstance(value, str) else None


def _is_by_user(turn: Any) -> bool:
    role = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    return isinstance(role, str) and ROLES.get(role.strip().lower()) == "user"


def _marked(rows: Sequence[Row], layouts: list[Layout]) -> str | None:
    if not layouts or layouts[0].format == "text":
        return None
    columns = _columns(rows)
    for name, values in columns.items():
        if not _is_mark(name, values):
            continue
        bad = sorted({text for value in values if _is_bad(name, text := str(shown_value(value)))})
        words = [re.escape(text) for text in bad] or _words_for_bad(name, values)
        pattern = f"^({'|'.join(words)})$" if len(words) > 1 else f"^{words[0]}$"
        return (
            f"preference data: `{name}` marks rows as good or bad, and raymix would train on them all. To train on "
            f"the good ones only, write {layouts[0].settings()}, "
            f"exclude: [{{field: {name}, pattern: '{pattern}', eval: true}}]"
        )
    return None


def _is_mark(name: str, values: Sequence[Any]) -> bool:
    """Whether a column holds yes or no, and its name is one for marks of answers."""
    if not values or not _MARK.fullmatch(_plain(name)):
        return False
    words = {str(shown_value(value)).strip().lower().removesuffix(".0") for value in values}
    return words <= _GOOD_WORDS | _BAD_WORDS


def _is_bad(name: str, shown: str) -> bool:
    is_bad = shown.strip().lower().removesuffix(".0") in _BAD_WORDS
    return is_bad is not bool(_BAD_MARK.fullmatch(_plain(name)))


def _words_for_bad(name: str, values: Sequence[Any]) -> list[str]:
    """Patterns of values that mark a bad row, when these values all mark good ones."""
    is_reversed = bool(_BAD_MARK.fullmatch(_plain(name)))
    if all(isinstance(value, bool) for value in values):
        return ["true" if is_reversed else "false"]
    words = sorted(_GOOD_WORDS if is_reversed else _BAD_WORDS)
    return [rf"{word}(\.0)?" if word[-1].isdigit() else word for word in words]


def _fits_two(layouts: list[Layout]) -> str | None:
    if len(layouts) < 2:
        return None
    ways = " or ".join(f"{layout.format} (by {', '.join(layout.columns)})" for layout in layouts)
    return f"two layouts: the rows fit {ways}. To use the first of them, write {layouts[0].settings()}"


def _passed_over(rows: Sequence[Row], layout: Layout) -> str | None:
    if layout.format == "text":
        return None
    columns = _columns(rows)
    lost = [*_LOST, *(_LOST_FROM_A_PAIR if layout.format == "prompt_completion" else ("context",))]
    if layout.format in ("messages", "sharegpt"):
        lost += ["history", *{name: None for row in rows for name in thoughts_in(row)}]
    read = {*layout.fields.values(), *([] if "input" in layout.fields else ["input"] * (layout.format == "alpaca"))}
    name = next((name for name in lost if name in columns and name not in read), None)
    if name is None:
        return None
    advice = f"To leave it out, write {layout.settings()}"
    if layout.format == "prompt_completion" and name in _BEHIND_THE_QUESTION and isinstance(columns[name][0], str):
        prompt, completion = layout.columns
        whole = Layout("alpaca", {"instruction": prompt, "input": name, "output": completion})
        advice = f"To append it to the question, write {whole.settings()}. {advice}"
    return f"a column that would be left out: the rows have `{name}` in addition to the conversation. {advice}"
