"""Published chat templates against a definition of their answers: ids, targets, and what is refused.

Every template of a folder (`*.jinja`, the `trl` distribution has some seventy) renders random conversations under four
tokenizers. The right answer is not computed by the code under test: for each family it is written down below what
stands before an answer and what ends it, every text of a conversation is made of words that occur once, and a token has
to be a target where it holds a character from an answer's first word to its end token. It may not be one where all of
it stands outside of the answers. In between, in what the template adds before the first word (an empty thought, say),
both are right.

    python benchmarks/templates.py FOLDER [--conversations 500] [--only qwen3]
"""

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils.chat_template_utils import render_jinja_template

from workers.data.formats.example import Example
from workers.data.templates import Tokens, tokenize_examples

IM = (r"<\|im_start\|>assistant\n", r"<\|im_end\|>")
FAMILIES = {
    # Beginning of the file's name: what stands before an answer, and what ends it.
    "qwen": IM,
    "lfm2": IM,
    "nemotron": IM,
    "phi3": (r"<\|assistant\|>\n", r"<\|end\|>"),
    "llama3": (r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n", r"<\|eot_id\|>"),
    "gemma4": (r"<\|turn>model\n|<tool_response\|>", r"<turn\|>|<\|tool_response>"),
    "diffusion_gemma": (r"<\|turn>model\n|<tool_response\|>", r"<turn\|>|<\|tool_response>"),
    "gemma": (r"<start_of_turn>model\n", r"<end_of_turn>"),
    "cohere2": (r"<\|CHATBOT_TOKEN\|>", r"<\|END_RESPONSE\|><\|END_OF_TURN_TOKEN\|>"),
    "cohere": (r"<\|CHATBOT_TOKEN\|>", r"<\|END_OF_TURN_TOKEN\|>"),
    "deepseek": (
        "<\uff5cAssistant\uff5c>|<\uff5ctool\u2581outputs\u2581end\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ),
    "glm4moe": (r"<\|assistant\|>", r"(?=<\|(?:user|observation|system|assistant)\|>|$)"),
    "gptoss": (r"<\|start\|>assistant", r"<\|(?:end|return|call)\|>"),
    "muse": (r"<\|start\|>assistant", r"<\|(?:eot|eom)\|>"),
    "idefics3": ("Assistant:", "<end_of_utterance>"),
    "smolvlm": ("Assistant:", "<end_of_utterance>"),
    "llava_next": (r"\[/INST\]|^(?! ?\[INST|<<SYS)|<</SYS>>\n\n(?!\[INST)", "</s>"),
}
ODD = ["", "é", "日本", "🙂", "👩‍👩‍👧", "\n", "  ", '"', "{}", "a\u0301", "\t", "\\", "🙂🙂"]
CONTROL = re.compile("<[|\uff5c/]?[\\w\u2581|\uff5c]{2,40}[|\uff5c]?>|\\[/?INST\\]|</s>")


@dataclass
class Talk:
    """A conversation, and the words of each of its answers."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)


class Talker:
    """Makes conversations at random."""

    def __init__(self, seed: int, speaks_beside_calls: bool) -> None:
        self.random = random.Random(seed)
        self.numbers = count(1000)
        self.speaks_beside_calls = speaks_beside_calls

    def word(self, who: str) -> str:
        """Of a kind of text, and never said before."""
        return f"{who}w{next(self.numbers)}w"

    def text(self, who: str) -> str:
        """A few words with odd characters between them, and sometimes space around."""
        choose = self.random.choice
        words = [self.word(who) + choose(ODD) for _ in range(self.random.randint(1, 4))]
        text = " ".join(words) + choose(["", ".", "!", "🙂", "。"])
        return choose(["", "", "", " ", "\n"]) + text + choose(["", "", "", " ", "\n\n"])

    def talk(self) -> Talk:
        """One conversation."""
        chance, talk = self.random.random, Talk()
        if chance() < 0.4:
            self._say(talk, "system")
        if chance() < 0.08:
            self._say(talk, "assistant")
        if chance() < 0.3:
            talk.tools = [self._tool() for _ in range(self.random.randint(1, 2))]
        for _ in range(self.random.randint(1, 4)):
            self._say(talk, "user")
            if talk.tools and chance() < 0.5:
                self._call(talk)
            self._say(talk, "assistant")
        if chance() < 0.2:
            answers = [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]
            talk.learned[self.random.choice(answers)] = False
        return talk

    def _say(self, talk: Talk, role: str) -> dict[str, Any]:
        message = {"role": role, "content": self.text(role[0])}
        if role == "assistant":
            kind = self.random.random()
            if kind < 0.3:
                message["reasoning_content"] = self.text("a").strip()
            elif kind < 0.4:
                message["content"] = f"<think>\n{self.text('a').strip()}\n</think>\n\n{self.text('a').strip()}"
        talk.messages.append(message)
        talk.learned.append(role == "assistant")
        return message

    def _call(self, talk: Talk) -> None:
        message = self._say(talk, "assistant")
        if self.random.random() < 0.6 or not self.speaks_beside_calls:
            message["content"] = ""
        num_calls = 1 if self.random.random() < 0.7 else 2
        message["tool_calls"] = [self._one_call(talk) for _ in range(num_calls)]
        for call in message["tool_calls"]:
            result = self._say(talk, "tool")
            result |= {"tool_call_id": call["id"], "name": call["function"]["name"]}

    def _one_call(self, talk: Talk) -> dict[str, Any]:
        name = self.random.choice(talk.tools)["function"]["name"]
        arguments = {"town": self.word("a"), "days": self.random.randint(1, 9)}
        return {"id": self.word("i"), "type": "function", "function": {"name": name, "arguments": arguments}}

    def _tool(self) -> dict[str, Any]:
        town = {"type": "string", "description": self.word("t")}
        parameters = {"type": "object", "properties": {"town": town, "days": {"type": "integer"}}, "required": ["town"]}
        function = {"name": self.word("n"), "description": self.word("t"), "parameters": parameters}
        return {"type": "function", "function": function}


def build_tokenizers(control_tokens: list[str]) -> dict[str, PreTrainedTokenizerFast]:
    """Bytes as in GPT-2, also with offsets that leave out spaces; SentencePiece as in Llama 2; and one that knows no
    control token, so that they are text as any other."""
    texts = ["the weather of a town is assistant user system tool function call think 1234567890 w aw uw sw " * 3]
    made = {}
    for name in ("bytes", "trimmed", "sentencepiece", "plain"):
        if name == "sentencepiece":
            core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
            core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
            trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *byte_tokens], show_progress=False)
            core.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
        else:
            core = Tokenizer(models.BPE())
            core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            core.decoder = decoders.ByteLevel()
            core.post_processor = processors.ByteLevel(trim_offsets=name == "trimmed")
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
        core.train_from_iterator(texts, trainer)
        content = json.loads(core.to_str())
        content["added_tokens"] = []  # the trainer takes all bytes of SentencePiece for special tokens
        core = Tokenizer.from_str(json.dumps(content))
        added = [] if name == "plain" else control_tokens
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", name_or_path=name
        )
        # Tags of thoughts and calls are words of the vocabulary, but no control tokens, in the models that have them.
        tokenizer.add_tokens([AddedToken(token, special="think" not in token) for token in added])
        made[name] = tokenizer
    return made


class Answer(NamedTuple):
    """Characters of an answer: from the prompt to the end token, and from its first word to where it may end."""

    start: int
    first_word: int
    may_end: int
    end: int


def find_answers(talk: Talk, text: str, family: tuple[str, str]) -> list[Answer]:
    """The answers to learn, by the family's definition; those of one message in one where they touch."""
    before, end = family
    owners = {
        word: index
        for index, message in enumerate(talk.messages)
        if message["role"] == "assistant"
        for word in re.findall(r"aw\d+w", json.dumps(message, ensure_ascii=False))
    }
    found: list[Answer] = []
    last_owner = None
    for region in re.finditer(rf"(?:{before})(.*?)(?:{end})", text, re.DOTALL):
        words = list(re.finditer(r"[a-z]w\d+w", region.group(1)))
        own = [word for word in words if word.group() in owners]
        assert not own or not any(word.group()[0] in "ust" for word in words), f"no definition of {text!r}"
        if not own or not talk.learned[owner := owners[own[0].group()]]:
            continue
        start = region.start(1)
        if owner == last_owner and not re.search(r"[ust]w\d+w", text[found[-1].end : start]):
            first = found.pop()
        else:
            first = Answer(start, start + own[0].start(), 0, 0)
        # What begins the result of a call ends the call, but stands there for the result.
        may_end = region.end(1) if region.group().endswith("<|tool_response>") else region.end()
        found.append(first._replace(may_end=may_end, end=region.end()))
        last_owner = owner
    return found


def byte_ranges(tokenizer: PreTrainedTokenizerFast, ids: list[int], text: str) -> list[tuple[int, int]]:
    """Bytes of the text that each token stands for, by walking along it; not by the tokenizer's own offsets."""
    of_letter = {letter: bytes([value]) for value, letter in bytes_to_unicode().items()}
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    written, at, ranges = text.encode(), 0, []
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in added:
            piece = token.encode()
        elif tokenizer.name_or_path == "sentencepiece":
            as_byte = re.fullmatch(r"<0x(..)>", token)
            piece = bytes.fromhex(as_byte.group(1)) if as_byte else token.replace("▁", " ").encode()
            piece = piece if written.startswith(piece, at) else piece.removeprefix(b" ")  # put before the text
        else:
            piece = b"".join(of_letter[letter] for letter in token)
        assert written.startswith(piece, at), (token, written[at : at + 20])
        ranges.append((at, at + len(piece)))
        at += len(piece)
    assert at == len(written)
    return ranges


def forms(talk: Talk) -> Iterator[list[dict[str, Any]]]:
    """The messages in every form that templates take."""
    for as_parts, as_text, with_empty in product((False, True), (False, True), (True, False)):
        messages = []
        for message in talk.messages:
            content = message["content"]
            changed: dict[str, Any] = {"content": [{"type": "text", "text": content}] if as_parts else content}
            if "tool_calls" in message:
                calls = [call["function"] for call in message["tool_calls"]]
                changed["tool_calls"] = [
                    {**call, "function": {**f, "arguments": json.dumps(f["arguments"]) if as_text else f["arguments"]}}
                    for call, f in zip(message["tool_calls"], calls, strict=True)
                ]
                changed |= {} if content or with_empty else {"content": None}
            messages.append({key: value for key, value in {**message, **changed}.items() if value is not None})
        yield messages


def renderings(tokenizer: Any, talk: Talk) -> Iterator[tuple[str, list[int]]]:
    """What the library makes of the conversation."""
    for messages in forms(talk):
        with suppress(Exception):
            text = tokenizer.apply_chat_template(messages, tools=talk.tools or None, tokenize=False)
            ids = tokenizer.apply_chat_template(messages, tools=talk.tools or None)["input_ids"]
            yield text, ids


def is_whole(talk: Talk, text: str) -> bool:
    """Whether all tools, calls and results are in a rendering, and something to learn."""
    calls = [call for message in talk.messages for call in message.get("tool_calls", [])]
    results = [message["content"] for message in talk.messages if message["role"] == "tool"]
    wanted = json.dumps([talk.tools, [call["function"]["arguments"] for call in calls], results], ensure_ascii=False)
    words = [word for word in re.findall(r"[a-z]w\d+w", wanted)]
    learned = [m["content"] for m, is_learned in zip(talk.messages, talk.learned, strict=True) if is_learned]
    to_learn = re.findall(r"aw\d+w", json.dumps(learned))
    return all(word in text for word in words) and any(word in text for word in to_learn)


def judge(tokenizer: Any, talk: Talk, result: Tokens | str, family: tuple[str, str]) -> str:
    """`right`, `refused`, or what is wrong with a result."""
    truth = list(renderings(tokenizer, talk))
    if isinstance(result, str):
        whole = [text for text, _ in truth if is_whole(talk, text)]
        return f"wrongly refused: {result}\n{whole[0]!r}" if whole else "refused"
    ids = result.input_ids.tolist()
    text = next((text for text, right_ids in truth if right_ids == ids), None)
    if text is None:
        return "other ids"
    if not is_whole(talk, text):
        return f"not refused, though something is missing: {text!r}"
    answers = find_answers(talk, text, family)
    # Of the template's own blocks every character is right, whatever they hold besides the answer.
    allowed = [(answer.start, answer.end) for answer in answers] + find_blocks(tokenizer, talk, text, answers)
    return judge_targets(byte_ranges(tokenizer, ids, text), result, answers, allowed, text)


def find_blocks(tokenizer: Any, talk: Talk, text: str, answers: list[Answer]) -> list[tuple[int, int]]:
    """The `{% generation %}` blocks that hold some of these answers."""
    if "endgeneration" not in tokenizer.chat_template:
        return []
    for messages in forms(talk):
        with suppress(Exception):
            rendered: Any = render_jinja_template(
                [messages],
                tools=cast(Any, talk.tools or None),
                chat_template=tokenizer.chat_template,
                return_assistant_tokens_mask=True,
                **tokenizer.special_tokens_map,
            )
            (whole,), (blocks,) = rendered
            if whole == text:
                return [b for b in blocks if any(b[0] < a.end and a.first_word < b[1] for a in answers)]
    raise AssertionError("no rendering with blocks")


def judge_targets(
    ranges: list[tuple[int, int]],
    result: Tokens,
    answers: list[Answer],
    allowed: list[tuple[int, int]],
    text: str,
) -> str:
    """`right`, or the first token that is wrongly a target, or wrongly none."""
    to_byte = [0, *np.cumsum([len(character.encode()) for character in text]).tolist()]
    must = [(to_byte[answer.first_word], to_byte[answer.may_end]) for answer in answers]
    may = [(to_byte[start], to_byte[end]) for start, end in allowed]
    for index, (start, end) in enumerate(ranges):
        if start == end or index == 0:
            continue
        is_target = bool(result.loss_mask[index])
        if not is_target and any(start < stop and begin < end for begin, stop in must):
            return f"not a target: {_context(text, start, end)}"
        if is_target and not any(start < stop and begin < end for begin, stop in may):
            return f"a target: {_context(text, start, end)}"
    return "right"


def _context(text: str, start: int, end: int) -> str:
    written = text.encode()
    parts = (written[max(0, start - 150) : start], written[start:end], written[end : end + 100])
    before, token, after = (part.decode(errors="replace") for part in parts)
    return f"{before!r} >>> {token!r} <<< {after!r}"


def main() -> None:
    """Print a line for each template; exit with 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--conversations", type=int, default=500)
    parser.add_argument("--only", default="")
    parser.add_argument("--show", type=int, default=1, help="wrong conversations to print for each template")
    arguments = parser.parse_args()
    num_wrong = 0
    for path in sorted(arguments.folder.glob(f"{arguments.only}*jinja")):
        family = next(family for name, family in FAMILIES.items() if path.name.startswith(name))
        source = path.read_text(encoding="utf-8")
        began, verdicts, shown = time.perf_counter(), Counter[str](), 0
        for number, (name, tokenizer) in enumerate(build_tokenizers(sorted(set(CONTROL.findall(source)))).items()):
            tokenizer.chat_template = source
            # Gemma 4 writes what is said beside a call behind its result, in one turn with the next answer.
            talker = Talker(number, speaks_beside_calls=not path.name.startswith(("gemma4", "diffusion_gemma")))
            talks = [talker.talk() for _ in range(-(-arguments.conversations // 4))]
            examples = [
                Example(1, tuple(talk.messages), tools=tuple(talk.tools), learned=tuple(talk.learned)) for talk in talks
            ]
            for talk, result in zip(talks, tokenize_examples(tokenizer, examples), strict=True):
                verdict = judge(tokenizer, talk, result, family)
                verdicts[verdict if verdict in ("right", "refused") else "wrong"] += 1
                if verdict not in ("right", "refused") and shown < arguments.show:
                    shown += 1
                    print(f"  {name}: {verdict}")
        num_wrong += verdicts["wrong"]
        counts = ", ".join(f"{verdicts[kind]} {kind}" for kind in ("right", "refused", "wrong"))
        print(f"{path.stem}: {counts}  ({time.perf_counter() - began:.1f} s)", flush=True)
    print(f"{num_wrong} wrong")
    sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
