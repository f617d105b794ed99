"""Where the answers are in a rendered conversation: the characters that the model is to produce.

A template with `{% generation %}` blocks marks them itself. Most have none, and how they write an answer often depends
on what follows it (thoughts of earlier turns vanish, the last turn ends differently), so an answer cannot be found as
the difference of two renderings. It is found by its content: the conversation is rendered a second time with an unused
character before and after the text of each message. With these removed, the two renderings must be equal; the marks
then show where each message is. From there

* an answer begins where the prompt for it ends: what the template writes between the previous message and the answer,
  as far as it writes the same when asked for one (`add_generation_prompt`);
* it ends with the end token that the template writes after it when the conversation ends with this answer. If the
  whole conversation has a different one there, that counts if it also ends a message that is answered.

If a template hides these, less is taken: the text of the answer, and never that of another speaker.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from workers.data.chat_template import (
    PROBE,
    ChatTemplate,
    Conversation,
    Span,
    TemplateRefusal,
    before_empty_element,
    shared_length,
)
from workers.data.formats.example import Message
from workers.data.messages import Located, Mark, Marker, find_taken, text_of

Key = tuple[object, ...]
Locate = Callable[[Sequence[Message], bool], Located]


@dataclass(frozen=True, slots=True)
class Answer:
    """The characters of one message, from the end of the prompt through the end token."""

    start: int
    end: int
    message: int


def find_answers(template: ChatTemplate, conversation: Conversation) -> list[Answer]:
    """The answers in the text, trained on or not, in order; in pieces if a template inserts another speaker's words.
    TemplateRefusal if the template's own generation blocks leave out an answer, or a call cannot be found."""
    blocks = conversation.blocks
    if blocks is not None:
        blocks = [(template.behind_header(conversation.text, start, end), end) for start, end in blocks]
        if answers := _match_plainly(blocks, template, conversation):
            return answers
    structure = _Structure(template, conversation)
    if blocks is not None:
        return _match_blocks(blocks, structure.find_answers())
    structure.check_calls()
    return structure.find_answers()


def _match_plainly(blocks: list[Span], template: ChatTemplate, conversation: Conversation) -> list[Answer]:
    """The blocks as answers if each contains exactly one and an end token; otherwise none."""
    indices = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    if len(indices) != len(blocks):
        return []
    text = conversation.text
    is_plain = all(
        text_of(conversation.messages[index]).strip() in text[start:end] and template.ends_with_marker(text[start:end])
        for index, (start, end) in zip(indices, blocks, strict=True)
    )
    return [Answer(*block, index) for index, block in zip(indices, blocks, strict=True)] if is_plain else []


def _match_blocks(blocks: list[Span], answers: list[Answer]) -> list[Answer]:
    """The blocks as answers: assigned to messages, and extended to the end token if a block omits it."""
    matched = []
    for answer in answers:
        own = [(start, end) for start, end in blocks if start < answer.end and answer.start < end]
        if not own:
            raise TemplateRefusal(
                f"the chat template's generation mask is wrong: it marks {len(blocks)} of {len(answers)} answers"
            )
        matched += [Answer(start, end, answer.message) for start, end in own[:-1]]
        matched.append(Answer(own[-1][0], max(own[-1][1], answer.end), answer.message))
    return matched


class _Structure:
    """What a template writes around the messages of one conversation."""

    def __init__(self, template: ChatTemplate, conversation: Conversation) -> None:
        self._template = template
        self._messages, self._tools = conversation.messages, conversation.tools
        self._taken = find_taken(self._messages, self._tools)
        self._way, self._whole = self._find_way(conversation.text)
        # The text between two messages is mostly the same at every turn, and every question costs a rendering.
        self._known: dict[Key, int | None] = {}

    def check_calls(self) -> None:
        """Raise TemplateRefusal unless the place of every call is known."""
        found = {mark.message for mark in self._whole.marks if mark.is_call}
        for index, message in enumerate(self._messages):
            if "tool_calls" in message and index not in found:
                names = ", ".join(call["function"]["name"] for call in message["tool_calls"])[:80]
                raise TemplateRefusal(
                    f"the chat template does not show where a tool call begins: {names}; set model.chat_template to "
                    "one with {% generation %} blocks"
                )

    def _find_way(self, text: str) -> tuple[Locate, Located]:
        """The first way to locate messages whose marks leave the text as it is."""
        for locate in (self._locate, partial(self._locate, only="assistant")):
            try:
                whole = locate(self._messages, False)
            except TemplateRefusal:
                continue
            if whole.text == text:
                return locate, whole
        return self._search, self._search(self._messages, False)

    def find_answers(self) -> list[Answer]:
        """Every answer that the text contains at least in part."""
        answers = []
        for message, run in groupby(enumerate(self._whole.marks), key=lambda numbered: numbered[1].message):
            if self._messages[message]["role"] == "assistant":
                numbers = [number for number, _ in run]
                answers.append(self._answer(message, numbers[0], numbers[-1]))
        return [answer for answer in answers if answer is not None]

    def _answer(self, index: int, first: int, last: int) -> Answer | None:
        """The piece of an answer with the marks `first` to `last` of the text; None if it is not an answer."""
        text, marks = self._whole.text, self._whole.marks
        before = marks[first - 1].at if first else 0
        after = marks[last + 1].at if last + 1 < len(marks) else len(text)
        asks, closes = text[before : marks[first].at], text[marks[last].at : after]
        kind = tuple(sorted(self._messages[index].keys()))
        role_before = self._messages[index - 1]["role"] if index else ""
        is_later = any(mark.message == index for mark in marks[:first])
        asked: Key = ("asks", asks, kind, role_before, is_later)
        if asked not in self._known:
            self._known[asked] = self._length_of_prompt(index, asks, marks[:first])
        if (length := self._known[asked]) is None:
            return None
        closed: Key = ("closes", closes, kind, marks[last].is_call)
        if closed not in self._known:
            self._known[closed] = self._length_of_end(index, closes, marks[last])
        return Answer(before + length, marks[last].at + (self._known[closed] or 0), index)

    def _length_of_prompt(self, index: int, written: str, marks_before: list[Mark]) -> int | None:
        """How many of the characters written between two messages are the prompt for the second."""
        if any(mark.message == index for mark in marks_before):
            return len(written)  # a later piece of the answer, after another speaker's words
        asked = self._try(self._messages[:index], prompt=True) if index else None
        if asked is None or [mark.number for mark in asked.marks[-1:]] != [mark.number for mark in marks_before[-1:]]:
            return self._length_with_header(written)
        prompt = asked.text[asked.marks[-1].at if asked.marks else 0 :]
        length = shared_length(written, prompt)
        if length == len(written) or (length == len(prompt) and self._template.header):
            return length
        if length == len(prompt):
            return max(length, self._length_of_announcement(index, written))
        return max(self._template.snap(written, length), self._end_of_header(written, self._template.header))

    def _length_of_announcement(self, index: int, written: str) -> int:
        """The same without a prompt: what the template writes before every answer is not part of the answer, but what
        it writes only before a call or a thought is."""
        if not {"tool_calls", "reasoning_content"} & self._messages[index].keys():
            return len(written)
        plain = self._try([*self._messages[:index], {"role": "assistant", "content": PROBE}])
        numbers = [number for number, mark in enumerate(plain.marks) if mark.message == index] if plain else []
        if plain is None or not numbers:
            return len(written)
        before = plain.marks[numbers[0] - 1].at if numbers[0] else 0
        announced = plain.text[before : plain.marks[numbers[0]].at]
        length = shared_length(written, announced)
        return length if length in (len(written), len(announced)) else self._template.snap(written, length)

    def _length_with_header(self, written: str) -> int | None:
        """The same if the prompt of this answer cannot be seen: by the prompt of other answers."""
        if not self._template.header:
            return len(written)
        for header in self._template.headers:
            if end := self._end_of_header(written, header):
                return end
        return None  # not announced as an answer, but part of another speaker's message

    @staticmethod
    def _end_of_header(written: str, header: str) -> int:
        at = written.rfind(header) if header else -1
        return before_empty_element(written, at + len(header)) if at >= 0 else 0

    def _length_of_end(self, index: int, written: str, last: Mark) -> int:
        """How many of the characters written after the last mark of an answer belong to it."""
        closing = self._closing(index, last)
        if closing is None:
            return self._length_to_end_token(written, is_call=last.is_call)
        rest_of_call = 0
        if last.is_call:  # the mark follows its name: what both renderings write from there on is the call
            shared = shared_length(written, closing)
            shared = shared if shared == len(closing) else self._template.snap(closing, shared)
            rest_of_call = len(written[:shared].rstrip())
        return rest_of_call + self._length_of_end_token(written[rest_of_call:], closing[rest_of_call:])

    def _closing(self, index: int, last: Mark) -> str | None:
        """What is written after this mark if the conversation ends with this message."""
        cut_off = self._try(self._messages[: index + 1]) if index + 1 < len(self._messages) else self._whole
        numbers = [mark.number for mark in cut_off.marks] if cut_off else []
        if cut_off is None or last.number not in numbers:
            return None
        at = numbers.index(last.number)
        until = cut_off.marks[at + 1].at if at + 1 < len(numbers) else len(cut_off.text)
        return cut_off.text[cut_off.marks[at].at : until]

    def _length_to_end_token(self, written: str, *, is_call: bool) -> int:
        """The same if the conversation cannot be cut off here: up to what ends other answers."""
        if not is_call:
            return self._length_of_end_token(written, self._template.closing)
        end_token = re.match(rf"\s*({self._template.marker}+)", self._template.closing)
        at = written.find(end_token.group(1)) if end_token else -1
        return at + len(end_token.group(1)) if end_token and at >= 0 else 0

    def _length_of_end_token(self, written: str, closing: str) -> int:
        end_tokens = re.match(rf"\s*(?:{self._template.marker})+", closing)
        end = end_tokens.group() if end_tokens else closing.rstrip()
        if written.startswith(end):
            return len(end)
        if end_tokens is None:
            return 0
        count = len(re.findall(self._template.marker, end))
        others = re.match(rf"\s*(?:{self._template.marker}){{{count}}}", written)
        return others.end() if others and self._ends_a_message(others.group().strip()) else 0

    def _ends_a_message(self, end: str) -> bool:
        """Whether it follows a message that is answered, and does not already announce the answer."""
        if self._template.header.startswith(end):
            return False
        behind = re.compile(rf"\s*{re.escape(end)}")
        roles = [*(message["role"] for message in self._messages), ""]
        return any(
            mark.number % 2
            and roles[mark.message] != "assistant" == roles[mark.message + 1]
            and behind.match(self._whole.text, mark.at)
            for mark in self._whole.marks
        )

    def _try(self, messages: Sequence[Message], *, prompt: bool = False) -> Located | None:
        try:
            return self._way(messages, prompt)
        except TemplateRefusal:  # templates may refuse a part of a conversation
            return None

    def _locate(self, messages: Sequence[Message], prompt: bool, only: str | None = None) -> Located:
        """`only` this role's messages for templates that inspect the text of other speakers."""
        marker = Marker(self._taken)
        marked = [marker.mark(m, index) if only in (None, m["role"]) else m for index, m in enumerate(messages)]
        return marker.read(self._template.render(marked, self._tools, prompt=prompt))

    def _search(self, messages: Sequence[Message], prompt: bool) -> Located:
        """For templates that inspect or change the answers: each message's text after the previous one."""
        text = self._template.render(messages, self._tools, prompt=prompt)
        marks: list[Mark] = []
        for index, message in enumerate(messages):
            content = text_of(message).strip()
            start = text.find(content, marks[-1].at if marks else 0) if content else -1
            if start >= 0:
                marks.append(Mark(start, 2 * index, index, is_call=False))
                marks.append(Mark(start + len(content), 2 * index + 1, index, is_call=False))
        return Located(text, marks)
