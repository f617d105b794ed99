"""Which characters of a rendered conversation are the assistant's, for templates that write it in their own ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from workers.data.formats.example import Example
from workers.data.templates import Tokens, mask_by_offsets, tokenize_examples

TURN = "<|start|>{{ m['role'] }}\n"
PROMPT = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
PLAIN = "{% for m in messages %}" + TURN + "{{ m['content'] }}<|end|>\n{% endfor %}" + PROMPT

# As reasoning models have it: thoughts of earlier turns vanish, the last turn has a thought even where it has none.
THINKING = (
    "{% set last = namespace(at=-1) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set last.at = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}" + TURN + "{% set said = m['content'] %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m['role'] == 'assistant' and loop.index0 > last.at %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ said }}<|end|>\n{% endfor %}" + PROMPT
)
TOOLS = (
    "{% if tools %}<|start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|end|>\n{% endif %}"
    "{% for m in messages %}" + TURN + "{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}"
    "<call>{{ c.function.name }}({{ c.function.arguments | tojson }})</call>{% endfor %}"
    "<|end|>\n{% endfor %}" + PROMPT
)


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<|start|>", "<|end|>", "<|return|>")])
    return tokenizer


def example(*turns: tuple[str, str] | dict[str, Any], learned: tuple[bool, ...] = (), **rest: Any) -> Example:
    messages = [turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in turns]
    return Example(1, tuple(messages), learned=learned, **rest)


def learned(tokenizer: Any, template: str, row: Example) -> list[str]:
    """The texts of the stretches that the loss is on, after the ids were compared with the library's."""
    result = tokenize(tokenizer, template, row)
    assert isinstance(result, Tokens), result
    edges = np.flatnonzero(np.diff(np.concatenate([[0], result.loss_mask.astype(np.int8), [0]])))
    return [tokenizer.decode(result.input_ids[start:end]) for start, end in edges.reshape(-1, 2)]


def tokenize(tokenizer: Any, template: str, row: Example) -> Tokens | str:
    tokenizer.chat_template = template
    (result,) = tokenize_examples(tokenizer, [row])
    return result


TWO_TURNS = example(("user", "u"), ("assistant", "one 🙂"), ("user", "v"), ("assistant", "two"))


def test_what_a_line_ends_with_behind_the_end_token_is_not_learned(tokenizer: Any) -> None:
    assert learned(tokenizer, PLAIN, TWO_TURNS) == ["one 🙂<|end|>", "two<|end|>"]


def test_ids_are_those_of_the_library(tokenizer: Any) -> None:
    for template in (PLAIN, THINKING, TOOLS):
        result = tokenize(tokenizer, template, TWO_TURNS)
        assert isinstance(result, Tokens)
        assert result.input_ids.tolist() == tokenizer.apply_chat_template(list(TWO_TURNS.messages))["input_ids"]


def test_a_thought_that_only_the_last_turn_has(tokenizer: Any) -> None:
    row = example(
        ("user", "u"),
        {"role": "assistant", "content": "one", "reasoning_content": "FIRST"},
        ("user", "v"),
        {"role": "assistant", "content": "two", "reasoning_content": "SECOND"},
    )
    assert learned(tokenizer, THINKING, row) == ["one<|end|>", "<think>\nSECOND\n</think>\n\ntwo<|end|>"]
    result = tokenize(tokenizer, THINKING, row)
    assert isinstance(result, Tokens) and result.dropped == ("reasoning",)
    without = tokenize(tokenizer, PLAIN, row)
    assert isinstance(without, Tokens) and without.dropped == ("reasoning",)


def test_a_thought_within_the_text(tokenizer: Any) -> None:
    said = "<think>\nhow\n</think>\n\n"
    row = example(("user", "u"), ("assistant", f"{said}one"), ("user", "v"), ("assistant", f"{said}two"))
    assert learned(tokenizer, THINKING, row) == ["one<|end|>", f"{said}two<|end|>"]


def test_a_prompt_that_opens_the_thought_is_not_learned(tokenizer: Any) -> None:
    opened = THINKING.replace(PROMPT, PROMPT.replace("assistant\n", "assistant\n<think>\n"))
    row = example(("user", "u"), {"role": "assistant", "content": "two", "reasoning_content": "why"})
    assert learned(tokenizer, opened, row) == ["why\n</think>\n\ntwo<|end|>"]
    # Where the conversation does not have what the prompt promises, the answer begins behind its header.
    assert learned(tokenizer, opened, TWO_TURNS)[0] == "one 🙂<|end|>"
    closed = opened.replace("<think>\n{{ thought }}\n</think>\n\n", "<think></think>")
    assert learned(tokenizer, closed, TWO_TURNS) == ["one 🙂<|end|>", "<think></think>two<|end|>"]


def test_a_last_turn_that_ends_in_its_own_way(tokenizer: Any) -> None:
    returns = PLAIN.replace("<|end|>\n", "{{ '<|return|>' if loop.last and m['role'] == 'assistant' else '<|end|>' }}")
    assert learned(tokenizer, returns, TWO_TURNS) == ["one 🙂<|end|>", "two<|return|>"]


def test_the_end_of_the_conversation_is_not_the_end_of_an_answer(tokenizer: Any) -> None:
    ends = PLAIN.replace(
        PROMPT, "{% if add_generation_prompt %}<|start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
    )
    assert learned(tokenizer, ends, TWO_TURNS) == ["one 🙂<|end|>", "two<|end|>"]


def test_a_header_that_follows_at_once_is_no_end_token(tokenizer: Any) -> None:
    bare = "{% for m in messages %}" + TURN + "{{ m['content'] }}{% endfor %}" + PROMPT
    assert learned(tokenizer, bare, TWO_TURNS) == ["one 🙂", "two"]
    ends = bare.replace("{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    assert learned(tokenizer, ends, TWO_TURNS) == ["one 🙂", "two<eos>"]
    by_role = ends.replace("<|start|>{{ m['role'] }}\n", "<|{{ m['role'] }}|>").replace(
        "<|start|>assistant\n", "<|assistant|>"
    )
    row = example(("system", "s"), *TWO_TURNS.messages)
    assert learned(tokenizer, by_role, row) == ["one 🙂", "two<eos>"]


def test_a_conversation_that_begins_with_the_assistant(tokenizer: Any) -> None:
    row = example(("assistant", "Welcome."), ("user", "Hi"), ("assistant", "Hello."))
    for template in (PLAIN, THINKING, TOOLS):
        assert [text.rpartition("\n")[2] for text in learned(tokenizer, template, row)] == [
            "Welcome.<|end|>",
            "Hello.<|end|>",
        ]
    wants_user = "{{ raise_exception('no user') if messages | length == 1 and not add_generation_prompt }}" + PLAIN
    assert learned(tokenizer, wants_user, row) == ["Welcome.<|end|>", "Hello.<|end|>"]


def test_an_answer_that_the_template_makes_part_of_the_first_question_is_not_learned(tokenizer: Any) -> None:
    merges = (
        "{% for m in messages %}{% if loop.first and m['role'] == 'assistant' %}"
        "<|start|>user\n{{ m['content'] }}<|end|>\n{% else %}"
        + TURN
        + "{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
        + PROMPT
    )
    row = example(("assistant", "Welcome."), ("user", "Hi"), ("assistant", "Hello."))
    assert learned(tokenizer, merges, row) == ["Hello.<|end|>"]


def test_a_template_that_asks_for_no_answer(tokenizer: Any) -> None:
    silent = PLAIN.replace(PROMPT, "")
    assert learned(tokenizer, silent, TWO_TURNS) == ["one 🙂<|end|>", "two<|end|>"]


@pytest.mark.parametrize("change", ["| upper", "| trim", "| replace('e', 'E')"])
def test_a_template_that_changes_what_is_said(tokenizer: Any, change: str) -> None:
    changes = PLAIN.replace("m['content']", f"(m['content'] {change})")
    row = example(("user", " ue "), ("assistant", " one "), ("user", "v"), ("assistant", "two\n"))
    (said, other) = {"| upper": (" ONE ", "TWO\n"), "| trim": ("one", "two")}.get(change, (" onE ", "two\n"))
    assert learned(tokenizer, changes, row) == [f"{said}<|end|>", f"{other}<|end|>"]


def test_a_template_that_looks_at_what_is_said(tokenizer: Any) -> None:
    looks = PLAIN.replace(TURN, TURN + "{{ '!' if m['content'].startswith('o') or m['content'].startswith('u') }}")
    texts = learned(tokenizer, looks, TWO_TURNS)
    assert [text.lstrip("!") for text in texts] == ["one 🙂<|end|>", "two<|end|>"]


def test_texts_with_the_characters_that_are_used_as_marks(tokenizer: Any) -> None:
    row = example(("user", "u\U000f0001"), ("assistant", "o\U000f0900ne"), ("user", "v"), ("assistant", "\U000f0000"))
    assert learned(tokenizer, PLAIN, row) == ["o\U000f0900ne<|end|>", "\U000f0000<|end|>"]


def test_blocks_without_the_end_token_are_widened_to_it(tokenizer: Any) -> None:
    block = (
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}"
    )
    blocks = PLAIN.replace("{{ m['content'] }}", block)
    assert learned(tokenizer, blocks, TWO_TURNS) == ["one 🙂<|end|>", "two<|end|>"]
    assert learned(tokenizer, blocks, example(("user", "u"), ("assistant", "🙂"))) == ["🙂<|end|>"]


@pytest.mark.parametrize("whole", ["<|start|>assistant\n{{ m['content'] }}<|end|>\n", "{{ m['content'] }}<|end|>\n"])
def test_blocks_that_hold_the_header_begin_behind_it(tokenizer: Any, whole: str) -> None:
    header = "" if whole.startswith("<|start|>") else "<|start|>assistant\n"
    blocks = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}" + header + "{% generation %}" + whole
        + "{% endgeneration %}{% else %}" + TURN + "{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}" + PROMPT
    )  # fmt: skip
    assert learned(tokenizer, blocks, TWO_TURNS) == ["one 🙂<|end|>\n", "two<|end|>\n"]
    split = blocks.replace("<|start|>assistant\n{% generation %}", "<|start|>assistant{% generation %}\n\n")
    assert [text.lstrip() for text in learned(tokenizer, split, TWO_TURNS)] == ["one 🙂<|end|>\n", "two<|end|>\n"]


def test_blocks_around_everything_let_nobody_else_be_learned(tokenizer: Any) -> None:
    blocks = PLAIN.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")
    assert learned(tokenizer, blocks, TWO_TURNS) == ["one 🙂<|end|>", "two<|end|>"]


@pytest.mark.parametrize(
    "template", [PLAIN, PLAIN.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")]
)
def test_only_some_answers_are_learned(tokenizer: Any, template: str) -> None:
    row = example(*TWO_TURNS.messages, learned=(False, False, False, True))
    assert learned(tokenizer, template, row) == ["two<|end|>"]
    row = example(*TWO_TURNS.messages, learned=(False, True, False, False))
    assert learned(tokenizer, template, row) == ["one 🙂<|end|>"]


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a town", "parameters": {"type": "object", "properties": {}}},
}


def call(*towns: str, content: str = "") -> dict[str, Any]:
    functions = [{"name": "weather", "arguments": {"town": town}} for town in towns]
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }


CALLING = example(("user", "Rain?"), call("Bergen"), ("tool", "RESULT"), ("assistant", "Yes."), tools=(WEATHER,))


def test_a_call_is_learned_and_its_result_is_not(tokenizer: Any) -> None:
    assert learned(tokenizer, TOOLS, CALLING) == ['<call>weather({"town": "Bergen"})</call><|end|>', "Yes.<|end|>"]
    text = tokenizer.decode(tokenize(tokenizer, TOOLS, CALLING).input_ids)  # type: ignore[union-attr]
    assert "Of a town" in text and "RESULT" in text
    spoken = example(("user", "u"), call("A", "B", content="Look:"), ("tool", "R"), ("assistant", "Yes."))
    assert learned(tokenizer, TOOLS, spoken) == [
        'Look:<call>weather({"town": "A"})</call><call>weather({"town": "B"})</call><|end|>',
        "Yes.<|end|>",
    ]


def test_a_last_call_that_ends_in_its_own_way(tokenizer: Any) -> None:
    end = "{{ '<|return|>' if loop.last and m['role'] == 'assistant' else '<|end|>' }}"
    texts = learned(tokenizer, TOOLS.replace("<|end|>\n{% endfor %}", end + "{% endfor %}"), CALLING)
    assert texts == ['<call>weather({"town": "Bergen"})</call><|end|>', "Yes.<|return|>"]


def test_arguments_as_text_where_the_template_takes_no_objects(tokenizer: Any) -> None:
    as_text = TOOLS.replace("(c.function.arguments | tojson)", "c.function.arguments").replace(
        "{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}"
    )
    assert learned(tokenizer, as_text, CALLING)[0] == '<call>weather({"town": "Bergen"})</call><|end|>'
    spoken = example(("user", "u"), call("A", content="Look:"), ("tool", "R"), ("assistant", "Yes."))
    assert learned(tokenizer, as_text, spoken)[0] == 'Look:<call>weather({"town": "A"})</call><|end|>'
    wants_content = as_text.replace("{{ m['content'] }}", "{{ m['content'] + '' }}")
    assert learned(tokenizer, wants_content, CALLING)[0] == '<call>weather({"town": "Bergen"})</call><|end|>'


def test_a_result_within_the_turn_of_its_call_is_not_learned(tokenizer: Any) -> None:
    inside = (
        "{% for m in messages if m['role'] != 'tool' %}" + TURN + "{% for c in m.tool_calls or [] %}"
        "<call>{{ c.function.name }} {{ c.function.arguments.town }}</call>{% endfor %}"
        "{% for r in messages if r['role'] == 'tool' and m.tool_calls %}"
        "<result {{ m.tool_calls[0].function.name }}>{{ r['content'] }}</result>{% endfor %}"
        "{{ m['content'] }}<|end|>\n{% endfor %}" + PROMPT
    )
    row = example(("user", "Rain?"), call("Bergen", content="Dry."), ("tool", "RESULT"))
    assert learned(tokenizer, inside, row) == ["<call>weather Bergen</call>", "Dry.<|end|>"]


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        (TOOLS.replace("{% if tools %}", "{% if false %}"), "the tools: weather"),
        (TOOLS.replace("m.tool_calls or []", "[]"), "a tool call: weather"),
        (TOOLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"), "a tool call: weather, weather"),
        (
            TOOLS.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] != 'tool' }}"),
            "the result of a tool: RESULT",
        ),
        (PLAIN, "the tools: weather"),
    ],
)
def test_what_a_call_needs_is_not_left_out_silently(tokenizer: Any, template: str, missing: str) -> None:
    row = example(
        ("user", "Rain?"), call("Bergen", "Oslo"), ("tool", "RESULT"), ("assistant", "Yes."), tools=(WEATHER,)
    )
    refusal = tokenize(tokenizer, template, row)
    assert isinstance(refusal, str) and refusal.startswith(f"the chat template omits {missing}"), refusal


def test_a_call_that_cannot_be_found_is_not_left_unlearned(tokenizer: Any) -> None:
    by_id = TOOLS.replace("{{ c.function.name }}(", "{{ c.id }}(")
    row = example(("user", "u"), call("Bergen"), ("tool", "R"), ("assistant", "Yes."), tools=(WEATHER,))
    row.messages[1]["tool_calls"][0]["id"] = "functions.weather:0"
    refusal = tokenize(tokenizer, by_id, row)
    assert isinstance(refusal, str) and refusal.startswith(
        "the chat template does not show where a tool call begins: weather"
    )


def test_an_answer_without_a_target_is_counted(tokenizer: Any) -> None:
    merges = PLAIN.replace(TURN, "{% if not loop.first %}" + TURN + "{% else %}<|start|>user\n{% endif %}")
    row = example(("assistant", "Welcome."), ("user", "Hi"), ("assistant", "Hello."))
    result = tokenize(tokenizer, merges, row)
    assert isinstance(result, Tokens) and result.dropped == ("assistant message",)
    result = tokenize(tokenizer, merges, example(*row.messages, learned=(False, False, True)))
    assert isinstance(result, Tokens) and result.dropped == ()


def test_a_developer_speaks_as_the_system_where_there_is_none(tokenizer: Any) -> None:
    row = example(("system", "S"), ("developer", "Be brief."), ("user", "Hi"), ("assistant", "Hi."))
    assert learned(tokenizer, PLAIN, row) == ["Hi.<|end|>"]
    text = tokenizer.decode(tokenize(tokenizer, PLAIN, row).input_ids)  # type: ignore[union-attr]
    assert text.startswith("<|start|>system\nS\n\nBe brief.<|end|>\n<|start|>user")
    knows = PLAIN + "{# developer #}"
    text = tokenizer.decode(tokenize(tokenizer, knows, row).input_ids)  # type: ignore[union-attr]
    assert "<|start|>developer\nBe brief.<|end|>" in text


def test_contents_in_parts_where_the_template_takes_no_other(tokenizer: Any) -> None:
    parts = PLAIN.replace("{{ m['content'] }}", "{% for p in m['content'] if p.text %}{{ p.text }}{% endfor %}")
    assert learned(tokenizer, parts, TWO_TURNS) == ["one 🙂<|end|>", "two<|end|>"]


def test_contents_in_parts_are_not_written_out_as_lists(tokenizer: Any) -> None:
    shouts = PLAIN.replace(
        "{{ m['content'] }}", "{{ m['content'] | upper if m['role'] == 'system' else m['content'] }}"
    )
    row = example(("system", "Be brief."), *TWO_TURNS.messages)
    assert learned(tokenizer, shouts, row) == ["one 🙂<|end|>", "two<|end|>"]
    drops = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if loop.index > 1 or m['content'] is not string }}")
    assert learned(tokenizer, drops, row) == ["one 🙂<|end|>", "two<|end|>"]
    result = tokenize(tokenizer, drops, row)
    assert isinstance(result, Tokens) and result.dropped == ("system message",)


def test_a_system_message_that_is_left_out_is_named(tokenizer: Any) -> None:
    drops = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    result = tokenize(tokenizer, drops, example(("system", "Be brief."), *TWO_TURNS.messages))
    assert isinstance(result, Tokens) and result.dropped == ("system message",)
    result = tokenize(tokenizer, PLAIN, example(("system", "Be brief."), *TWO_TURNS.messages))
    assert isinstance(result, Tokens) and result.dropped == ()


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([(0, 2), (2, 4), (4, 6)], [0, 1, 0]),
        ([(0, 3), (3, 4), (4, 6)], [1, 1, 0]),  # half of the token is the answer's
        ([(0, 1), (1, 2), (2, 3), (2, 3), (2, 3), (3, 5)], [0, 0, 1, 1, 1, 1]),  # bytes of one character
        ([(0, 2), (2, 2), (2, 4), (4, 6)], [0, 1, 1, 0]),  # put before a word, as SentencePiece does
        ([(0, 1), (2, 2), (2, 4), (4, 6)], [0, 0, 1, 0]),  # a space before the answer that was trimmed off
        ([(0, 2), (2, 3), (4, 4), (4, 6)], [0, 1, 1, 0]),  # a space at its end
        ([(0, 2), (2, 4), (4, 4), (4, 6)], [0, 1, 0, 0]),  # put before what follows
    ],
)
def test_tokens_that_hold_a_character_of_an_answer(offsets: list[tuple[int, int]], expected: list[int]) -> None:
    assert mask_by_offsets(offsets, [(2, 4)]).astype(int).tolist() == expected


def test_a_tokenizer_that_tells_no_characters() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    template = PLAIN.replace("<|end|>", "</s>").replace("<|start|>", "#")
    assert learned(tokenizer, template, TWO_TURNS) == ["one 🙂</s>", "two</s>"]


def test_texts_that_carry_their_template(tokenizer: Any) -> None:
    text = "<|start|>user\nHi<|end|>\n<|start|>assistant\nHello.<|end|>\n"
    refused, taken = tokenize_examples(tokenizer, [Example(1, text=text), Example(2, text=text, has_template=True)])
    assert isinstance(refused, str) and "control token in the text: '<|start|>'" in refused
    assert "text_has_template" in refused
    assert isinstance(taken, Tokens)
    assert tokenizer.decode(taken.input_ids) == text and taken.loss_mask.tolist() == [False] + [True] * (
        len(taken.input_ids) - 1
    )
    assert taken.input_ids[0] == tokenizer.convert_tokens_to_ids("<|start|>")


def test_characters_for_private_use_are_text_as_any_other(tokenizer: Any) -> None:
    icon, other = "\U000f02a0", "\U000f0001"  # those of a font for programmers
    row = example(("user", f"u{icon}"), ("assistant", f"{icon}one{other}"), ("user", "one"), ("assistant", other))
    for template in (PLAIN, PLAIN.replace("m['content']", "m['content'] | upper")):
        targets = learned(tokenizer, template, row)
        assert [text.lower() for text in targets] == [f"{icon}one{other}<|end|>", f"{other}<|end|>"]


def test_a_header_that_begins_with_what_parts_messages(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ '' if loop.first else '\n' }}{{ m['role'] | capitalize }}: {{ m['content'] }}"
        "{% endfor %}{{ '\nAssistant:' if add_generation_prompt else '<|end|>' }}"
    )
    row = example(("assistant", "Welcome."), ("user", "u"), ("assistant", "two"))
    assert learned(tokenizer, template, row) == [" Welcome.", " two<|end|>"]


def test_a_header_between_two_answers_where_the_prompt_stands_closer(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{{ '' if loop.last else '\n' }}"
        "{% if loop.last and add_generation_prompt %}<|start|>assistant\n{% endif %}{% endfor %}"
    )
    row = example(("user", "u"), ("assistant", "one"), ("assistant", "two"), ("user", "v"), ("assistant", "three"))
    assert learned(tokenizer, template, row) == ["one<|end|>", "two<|end|>", "three<|end|>"]


def test_the_result_of_a_tool_that_is_left_out_is_missed_even_where_its_words_stand_elsewhere(tokenizer: Any) -> None:
    row = example(("user", "Is it raining?"), ("assistant", "rain()"), ("tool", "yes"), ("assistant", "Oh yes."))
    without_tools = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'tool' %}")
    result = tokenize(tokenizer, without_tools, row)
    assert isinstance(result, str) and "omits the result of a tool: yes" in result
    assert learned(tokenizer, PLAIN, row) == ["rain()<|end|>", "Oh yes.<|end|>"]


def test_what_opens_a_call_or_a_thought_is_learned_where_nothing_asks_for_an_answer(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]"
        "{% elif m['role'] == 'tool' %}[RESULT]{{ m['content'] }}[/RESULT]{% else %}"
        "{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}"
        "{% for c in m.tool_calls or [] %}[CALL]{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
        "{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "rain", "arguments": {}}}
    row = example(
        ("user", "u"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        ("tool", "wet"),
        {"role": "assistant", "content": "one", "reasoning_content": "so"},
        ("user", "v"),
        ("assistant", "two"),
    )
    assert learned(tokenizer, template, row) == ["[CALL]rain{}<|end|>", "[THINK]so[/THINK]one<|end|>", "two<|end|>"]
    announced = template.replace("{% else %}", "{% else %}<|start|>assistant\n", 1)
    assert learned(tokenizer, announced, row) == learned(tokenizer, template, row)
