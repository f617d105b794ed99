"""What a chat template makes of a conversation: the text, and what of the conversation is missing in it.

A template is the model maker's code and its rendering of the whole conversation is the truth. Templates differ in how
they take tool calls and whom they let speak, and many leave something out without a word; here the form that the
template takes is looked for, what must not be missing is refused, and what is missing is named.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers.utils.chat_template_utils import render_jinja_template

from workers.data.formats import Example, Message
from workers.data.message_forms import forms_of, has_written_out_parts, text_of, with_system, without

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[dict[str, Any]]
Span = tuple[int, int]

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OPENED_AT_THE_END = re.compile(r"<([^<>/\s]+)>$")
PROBE = "Hello there"
"""A plain answer, to see what a template writes around one."""
_MAX_REASON = 200


class TemplateRefusal(ValueError):
    """Why the template cannot render a conversation whole."""


@dataclass(frozen=True)
class Conversation:
    """A conversation in the form that a template takes, and the text that it becomes."""

    messages: tuple[Message, ...]
    """In that form."""
    learned: tuple[bool, ...]
    """Whether each of them is to be learned."""
    tools: Tools
    text: str
    """All of it, as `apply_chat_template` renders it."""
    blocks: list[Span] | None
    """Where the template's own `{% generation %}` blocks stand in the text; None for a template without them."""
    dropped: tuple[str, ...]
    """Kinds of content that the text lacks."""


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._sources: dict[bool, tuple[str, dict[str, Any]]] = {}

    def render(self, messages: Sequence[Message], tools: Tools = (), *, prompt: bool = False) -> str:
        """The text of a conversation, `prompt`: with what asks for the next answer behind it.

        Raises:
            TemplateRefusal: the template raises on it.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=prompt
                )
            )
        except Exception as error:  # a template is other people's code, and may raise anything
            raise _refusal(error) from None

    def read(self, example: Example) -> Conversation:
        """Render a conversation in the first form of its calls that the template takes whole.

        Raises:
            TemplateRefusal: the template raises on every form, or leaves out tools, a call or the result of one.
        """
        learned = example.learned or tuple(message["role"] == "assistant" for message in example.messages)
        turns = list(zip(example.messages, learned, strict=True))
        if not self._has_developer:
            turns = with_system(turns)
        messages, learned = zip(*turns, strict=True)
        refusals = []
        lacking: list[Conversation] = []
        for form in forms_of(messages):
            try:
                text, blocks = self._render_blocks(form, example.tools)
                self._check_tools(form, example.tools, text)
            except TemplateRefusal as error:
                refusals.append(error)
                continue
            if has_written_out_parts(form, text):
                continue
            dropped = tuple(_find_dropped(messages, text))
            conversation = Conversation(form, learned, example.tools, text, blocks, dropped)
            if not any(kind.endswith("message") for kind in dropped):
                return conversation
            lacking.append(conversation)
        if not lacking:
            raise refusals[0]
        return lacking[0]

    def _render_blocks(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[Span] | None]:
        """A conversation's text, and where the generation blocks stand in it."""
        source, variables = self._source(tools)
        if not _GENERATION_BLOCK.search(source):
            return self.render(messages, tools), None
        try:
            rendered: Any = render_jinja_template(
                [list(messages)],
                tools=list(tools) or None,
                chat_template=source,
                return_assistant_tokens_mask=True,
                **variables,
            )
        except Exception as error:
            raise _refusal(error) from None
        (text,), (blocks,) = rendered
        return text, [(start, end) for start, end in blocks if end > start]

    @cached_property
    def marker(self) -> str:
        """Regular expression of one control token: a special or added one of the tokenizer, or what is written so."""
        tokens = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.content.strip()]
        longest_first = sorted(tokens, key=len, reverse=True)
        return "(?:" + "|".join([*map(re.escape, longest_first), r"<[^<>\s]{1,64}>"]) + ")"

    def ends_with_marker(self, text: str) -> bool:
        """Whether a control token is the last of a text."""
        return self._last_marker.search(text) is not None

    def snap(self, text: str, length: int) -> int:
        """The last place up to `length` where a line or a control token ends."""
        ends = (found.end() for found in self._boundary.finditer(text))
        return before_empty_element(text, max((end for end in ends if end <= length), default=0))

    @cached_property
    def header(self) -> str:
        """What asks for the answer to a user's message; empty where the template asks for none."""
        asked, plain = self._probe(prompt=True), self._probe(prompt=False)
        if asked is None or plain is None:
            return ""
        after_asked, after_plain = asked.rpartition(PROBE)[2], plain.rpartition(PROBE)[2]
        shared = shared_length(after_asked, after_plain)
        return after_asked[shared if shared == len(after_plain) else self.snap(after_asked, shared) :]

    @cached_property
    def headers(self) -> list[str]:
        """The header and how it may begin where the template writes it otherwise, the longest first, each also without
        the space that parts it from a message before; no beginning that also stands before what a user says."""
        ends = {len(self.header), *(found.end() for found in self._boundary.finditer(self.header))}
        beginnings = [self.header[:end] for end in sorted(ends, reverse=True)]
        others = self._probe(prompt=False) or ""
        parts = dict.fromkeys(part for whole in beginnings for part in (whole, whole.lstrip()))
        return [part for part in parts if part and part not in others]

    def behind_header(self, text: str, start: int, end: int) -> int:
        """Where a generation block begins that holds the header of its answer, or its end: behind that."""
        header = self.headers[-1] if self.headers else ""
        at = text.find(header, max(0, start - len(header)), end) if header else -1
        return at + len(header) if at >= 0 and not text[start:at].strip() else start

    @cached_property
    def closing(self) -> str:
        """What the template writes behind a conversation's last answer."""
        probe = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
        try:
            return self.render(probe).rpartition(PROBE)[2]
        except TemplateRefusal:
            return ""

    def _probe(self, *, prompt: bool) -> str | None:
        try:
            return self.render([{"role": "user", "content": PROBE}], prompt=prompt)
        except TemplateRefusal:
            return None

    @cached_property
    def _boundary(self) -> re.Pattern[str]:
        return re.compile(rf"\n|{self.marker}")

    @cached_property
    def _last_marker(self) -> re.Pattern[str]:
        return re.compile(rf"{self.marker}\s*$")

    @cached_property
    def _has_developer(self) -> bool:
        # A template that writes any role's name as it is would make up a role that the model has never seen.
        return "developer" in self._source(())[0]

    def _source(self, tools: Tools) -> tuple[str, dict[str, Any]]:
        """The template for conversations with or without tools, and the variables that it is given."""
        if bool(tools) not in self._sources:
            source = str(self._tokenizer.get_chat_template(tools=list(tools) or None))
            self._sources[bool(tools)] = source, dict(self._tokenizer.special_tokens_map)
        return self._sources[bool(tools)]

    def _check_tools(self, messages: Sequence[Message], tools: Tools, text: str) -> None:
        """That nothing of them is missing, by comparing with renderings without it."""
        if tools and not self._shows(_names(tools), messages, (), text):
            raise TemplateRefusal(_left_out("the tools", _names(tools)))
        for index, message in enumerate(messages):
            calls = message.get("tool_calls", ())
            fewer = {"content": "", **without(message, "tool_calls")} | (
                {"tool_calls": calls[:-1]} if calls[1:] else {}
            )
            if calls and not self._shows(
                _names(calls), [*messages[:index], fewer, *messages[index + 1 :]], tools, text
            ):
                raise TemplateRefusal(_left_out("a tool call", _names(calls)))
            if message["role"] == "tool" and not self._shows_result(messages, index, tools, text):
                raise TemplateRefusal(_left_out("the result of a tool", [text_of(message).strip()]))

    def _shows(self, names: list[str], without: Sequence[Message], tools: Tools, text: str) -> bool:
        """Whether names stand in the text that would be another one without what they name."""
        try:
            differs = self.render(without, tools) != text
        except TemplateRefusal:
            differs = True
        return differs and all(name in text for name in names)

    def _shows_result(self, messages: Sequence[Message], index: int, tools: Tools, text: str) -> bool:
        """Whether the result of a tool stands in the text, which would be another one with another result."""
        if not _stands_in(text_of(messages[index]), text):
            return False
        other: Message = {**messages[index], "content": PROBE}
        try:
            return self.render([*messages[:index], other, *messages[index + 1 :]], tools) != text
        except TemplateRefusal:
            return True


def _refusal(error: Exception) -> TemplateRefusal:
    return TemplateRefusal(f"the chat template refuses it: {' '.join(str(error).split())[:_MAX_REASON]}")


def _left_out(what: str, names: Sequence[str]) -> str:
    return (
        f"the chat template leaves out {what}: {', '.join(names)[:80]}; set model.chat_template to a template that "
        "renders it, or leave the row out"
    )


def before_empty_element(text: str, place: int) -> int:
    """The place, or where an element begins that is opened right before it and closed right there, as an empty thought:
    it is not taken apart."""
    opened = _OPENED_AT_THE_END.search(text[:place])
    return opened.start() if opened and text.startswith(f"</{opened.group(1)}>", place) else place


def shared_length(one: str, other: str) -> int:
    """How many characters two texts begin alike with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _names(of: Sequence[dict[str, Any]]) -> list[str]:
    return [str(one.get("function", one).get("name", "")) for one in of]


def _find_dropped(messages: Sequence[Message], text: str) -> Iterator[str]:
    """The kinds of content that the text lacks, each once."""
    found: dict[str, bool] = {}
    for message in messages:
        content = message["content"]
        thought, closed, answer = content.rpartition("</think>")
        if message["role"] == "assistant" and closed:
            thought = thought.rpartition("<think>")[2]
            found["reasoning"] = found.get("reasoning") or not _stands_in(thought, text)
            content = answer
        if not _stands_in(content, text):
            found[f"{message['role']} message"] = True
        if not _stands_in(message.get("reasoning_content", ""), text):
            found["reasoning"] = True
    yield from (kind for kind, is_dropped in found.items() if is_dropped)


def _stands_in(part: str, text: str) -> bool:
    """Whether a part of a message stands in the text, plain or as JSON; templates trim what they are given."""
    core = part.strip()
    return (
        not core or core in text or json.dumps(core, ensure_ascii=False)[1:-1] in text or json.dumps(core)[1:-1] in text
    )
