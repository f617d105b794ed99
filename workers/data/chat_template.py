"""What a chat template renders from a conversation: the text, and which parts of the conversation it lacks.

A template is the model maker's code, and its rendering of the whole conversation is the truth. Templates differ in how
they accept tool calls and which roles they allow, and many omit parts silently. This module finds the form that the
template accepts, refuses the omission of essential parts and names other omissions.

Some templates write today's date: the same rows would differ tomorrow, so one day is fixed for all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.data.formats.example import Example, Message
from workers.data.messages import Tools, find_dropped, find_missing, forms_of, has_written_out_parts, with_system
from workers.durable import write_durably
from workers.storage.mirror import fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Rendered = tuple[str, list[Span] | None]
"""A conversation's text, and where the template's generation blocks are in it."""

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OPENED_AT_THE_END = re.compile(r"<([^<>/\s]+)>$")
PROBE = "Hello there"
"""A plain answer, to find out what a template writes around one."""
_QUESTION = {"role": "user", "content": PROBE}
_MAX_REASON = 200
_DATE_CALL = re.compile(r"""strftime_now\s*\(\s*("[^"]*"|'[^']*')\s*\)""")
_DATE_ASKED = re.compile(r"strftime_now\s*\(")
_DATE_FILE = "template-date"


class TemplateRefusal(ValueError):
    """Why the template cannot render a conversation completely."""


@dataclass(frozen=True)
class Conversation:
    """A conversation in the form that a template accepts, and its rendered text."""

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]  # whether each message is trained on
    tools: Tools
    text: str  # the whole conversation, as `apply_chat_template` renders it
    blocks: list[Span] | None
    """Where the template's `{% generation %}` blocks are in the text; None for a template without them."""
    dropped: tuple[str, ...]  # kinds of content that the text lacks


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._sources: dict[bool, tuple[str, bool, dict[str, Any]]] = {}

    def render(self, messages: Sequence[Message], tools: Tools = (), *, prompt: bool = False) -> str:
        """The text of a conversation, with `prompt` followed by what asks for the next answer; TemplateRefusal if the
        template raises an error."""
        try:
            options: dict[str, Any] = {"tools": list(tools) or None, "add_generation_prompt": prompt}
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except Exception as error:  # a template is third-party code and may raise anything
            raise _refusal(error) from None

    def render_ahead(self, examples: Sequence[Example]) -> list[Rendered | None]:
        """Many conversations rendered at once as they are, which is faster. None for those that `read` must render:
        with tools or a developer, with a template without blocks, or with one that raises an error on any of them."""
        _, has_blocks, _ = self._source(())
        plain = [
            example
            for example in examples
            if has_blocks and not example.tools and all(len(message) == 2 for message in example.messages)
        ]
        plain = [e for e in plain if self._has_developer or all(m["role"] != "developer" for m in e.messages)]
        try:
            rendered = iter(self._render_with_blocks([example.messages for example in plain], ()) if plain else [])
        except TemplateRefusal:
            return [None] * len(examples)
        known = {id(example): next(rendered) for example in plain}
        return [known.get(id(example)) for example in examples]

    def read(self, example: Example, ahead: Rendered | None = None) -> Conversation:
        """Render a conversation, unless `render_ahead` did, in the first form that the template accepts completely;
        TemplateRefusal if the template raises an error on every form, or omits tools, a call or the result of one."""
        learned = example.learned or tuple(message["role"] == "assistant" for message in example.messages)
        turns = list(zip(example.messages, learned, strict=True))
        if not self._has_developer:
            turns = with_system(turns)
        messages, learned = zip(*turns, strict=True)
        refusals = []
        lacking: list[Conversation] = []
        for form in forms_of(messages):
            try:
                text, blocks = ahead or self._render_either(form, example.tools)
                ahead = None
                if missing := find_missing(self._try, form, example.tools, text):
                    raise TemplateRefusal(missing)
            except TemplateRefusal as error:
                refusals.append(error)
                continue
            if has_written_out_parts(form, text):
                continue
            dropped = tuple(find_dropped(messages, text))
            conversation = Conversation(form, learned, example.tools, text, blocks, dropped)
            if not any(kind.endswith("message") for kind in dropped):
                return conversation
            lacking.append(conversation)
        if not lacking:
            raise refusals[0]
        return lacking[0]

    def _try(self, messages: Sequence[Message], tools: Tools = (), *, prompt: bool = False) -> str | None:
        try:
            return self.render(messages, tools, prompt=prompt)
        except TemplateRefusal:
            return None

    def _render_either(self, messages: Sequence[Message], tools: Tools) -> Rendered:
        if self._source(tools)[1]:
            return self._render_with_blocks([messages], tools)[0]
        return self.render(messages, tools), None

    def _render_with_blocks(self, conversations: Sequence[Sequence[Message]], tools: Tools) -> list[Rendered]:
        # Imported here: it takes half a second, which the driver of a finished run need not spend.
        from transformers.utils.chat_template_utils import render_jinja_template

        source, _, variables = self._source(tools)
        try:
            rendered: Any = render_jinja_template(
                [list(messages) for messages in conversations],
                tools=list(tools) or None,
                chat_template=source,
                return_assistant_tokens_mask=True,
                **variables,
            )
        except Exception as error:
            raise _refusal(error) from None
        return [
            (text, [(start, end) for start, end in blocks if end > start])
            for text, blocks in zip(*rendered, strict=True)
        ]

    @cached_property
    def marker(self) -> str:
        """Regular expression of one control token: a special or added token, or any text like `<word>`."""
        tokens = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.content.strip()]
        longest_first = sorted(tokens, key=len, reverse=True)
        return "(?:" + "|".join([*map(re.escape, longest_first), r"<[^<>\s]{1,64}>"]) + ")"

    def ends_with_marker(self, text: str) -> bool:
        return self._last_marker.search(text) is not None

    def snap(self, text: str, length: int) -> int:
        """The last place up to `length` where a line or a control token ends."""
        ends = (found.end() for found in self._boundary.finditer(text))
        return before_empty_element(text, max((end for end in ends if end <= length), default=0))

    @cached_property
    def header(self) -> str:
        """What the template writes to ask for an answer to a user's message; empty if it writes nothing."""
        asked, plain = self._try([_QUESTION], prompt=True), self._try([_QUESTION])
        if asked is None or plain is None:
            return ""
        after_asked, after_plain = asked.rpartition(PROBE)[2], plain.rpartition(PROBE)[2]
        shared = shared_length(after_asked, after_plain)
        return after_asked[shared if shared == len(after_plain) else self.snap(after_asked, shared) :]

    @cached_property
    def headers(self) -> list[str]:
        """The header and the beginnings with which the template may write it instead, longest first, each also without
        leading space; no beginning that also precedes a user's message."""
        ends = {len(self.header), *(found.end() for found in self._boundary.finditer(self.header))}
        beginnings = [self.header[:end] for end in sorted(ends, reverse=True)]
        others = self._try([_QUESTION]) or ""
        parts = dict.fromkeys(part for whole in beginnings for part in (whole, whole.lstrip()))
        return [part for part in parts if part and part not in others]

    def behind_header(self, text: str, start: int, end: int) -> int:
        """The start of a generation block, moved past the answer's header if the block contains (the end of) it."""
        header = self.headers[-1] if self.headers else ""
        at = text.find(header, max(0, start - len(header)), end) if header else -1
        return at + len(header) if at >= 0 and not text[start:at].strip() else start

    @cached_property
    def closing(self) -> str:
        """What the template writes after the last answer; empty if it refuses a plain one."""
        answered = self._try([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}])
        return (answered or "").rpartition(PROBE)[2]

    @cached_property
    def _boundary(self) -> re.Pattern[str]:
        return re.compile(rf"\n|{self.marker}")

    @cached_property
    def _last_marker(self) -> re.Pattern[str]:
        return re.compile(rf"{self.marker}\s*$")

    @cached_property
    def _has_developer(self) -> bool:
        # A template that writes any role's name verbatim would invent a role that the model has never seen.
        return "developer" in self._source(())[0]

    def _source(self, tools: Tools) -> tuple[str, bool, dict[str, Any]]:
        """The template for conversations with or without tools, whether it has generation blocks, and its variables."""
        if bool(tools) not in self._sources:
            source = str(self._tokenizer.get_chat_template(tools=list(tools) or None))
            has_blocks = _GENERATION_BLOCK.search(source) is not None
            self._sources[bool(tools)] = source, has_blocks, dict(self._tokenizer.special_tokens_map)
        return self._sources[bool(tools)]


def _refusal(error: Exception) -> TemplateRefusal:
    return TemplateRefusal(f"the chat template refuses the conversation: {' '.join(str(error).split())[:_MAX_REASON]}")


def before_empty_element(text: str, place: int) -> int:
    """`place`, or the start of an empty element (such as an empty thought) that would be split there."""
    opened = _OPENED_AT_THE_END.search(text[:place])
    return opened.start() if opened and text.startswith(f"</{opened.group(1)}>", place) else place


def shared_length(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def freeze_date(tokenizer: "PreTrainedTokenizerBase", cache_dir: Path) -> date | None:
    """Make the chat template write the day on which the first store in `cache_dir` was made, which is kept there.

    Changes the tokenizer; returns the day, or None if the template does not ask for it (`strftime_now`).

    Raises:
        ValueError: the format of the date is known only when the template is rendered.
    """
    templates = tokenizer.chat_template
    by_name = templates if isinstance(templates, dict) else {"": templates or ""}
    if not any(_DATE_ASKED.search(source) for source in by_name.values()):
        return None
    path = cache_dir / _DATE_FILE
    fetch(path)
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_durably(path, date.today().isoformat().encode())
    day = date.fromisoformat(path.read_text())
    frozen = {
        name: _DATE_CALL.sub(lambda call: _written_date(day, call.group(1)), source) for name, source in by_name.items()
    }
    if any(_DATE_ASKED.search(source) for source in frozen.values()):
        raise ValueError(
            "model.path: the chat template writes today's date in a format that cannot be known in advance, so the "
            "same rows would differ tomorrow; set model.chat_template to one without it"
        )
    tokenizer.chat_template = frozen if isinstance(templates, dict) else frozen[""]
    return day


def _written_date(day: date, form: str) -> str:
    quote = form[0]
    return quote + day.strftime(form[1:-1]).replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
