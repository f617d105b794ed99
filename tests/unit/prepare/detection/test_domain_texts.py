"""The domains' own texts: which rows, which side, in which form."""

import json
from pathlib import Path

import pytest

from orchestrator.prepare.detection.domain_texts import cut_openings, cut_windows, find_domain_texts, plain_text
from workers.config.data import DomainConfig
from workers.config.model import ModelConfig
from workers.data.formats.example import Example
from workers.model.tokenizer import load_tokenizer


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_of(prefix: str, count: int) -> list[str]:
    return [f"{prefix} number {number}" for number in range(count)]


def test_a_conversation_becomes_lines_without_roles() -> None:
    messages = ({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"})
    assert plain_text(Example(1, messages=messages)) == "2+2?\n4"
    assert plain_text(Example(1, text="a document")) == "a document"
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Oslo"}}}
    asks = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert plain_text(Example(1, (messages[0], asks, messages[1]))) == '2+2?\nweather {"town": "Oslo"}\n4'


def test_each_side_has_its_own_file(tmp_path: Path) -> None:
    train, held_out = texts_of("train", 20), texts_of("eval", 10)
    config = DomainConfig(
        train=[write_rows(tmp_path / "train.jsonl", train)], eval=[write_rows(tmp_path / "eval.jsonl", held_out)]
    )
    texts = find_domain_texts("law", config)
    assert sorted(texts.read(False, 100, 0)) == sorted(train)
    assert sorted(texts.read(True, 100, 0)) == sorted(held_out)


def test_a_bounded_number_of_rows_is_chosen_by_hash(tmp_path: Path) -> None:
    train = texts_of("train", 200)
    there = find_domain_texts("law", DomainConfig(train=[write_rows(tmp_path / "a.jsonl", train)]))
    back = find_domain_texts("law", DomainConfig(train=[write_rows(tmp_path / "b.jsonl", train[::-1])]))
    few = there.read(False, 20, 0)
    assert few == back.read(False, 20, 0) == there.read(False, 30, 0)[:20]
    assert few != there.read(False, 20, 1) and len({train.index(text) // 50 for text in few}) == 4


@pytest.mark.parametrize("part", ["train", "eval"])
def test_one_file_is_parted_by_prompt(tmp_path: Path, part: str) -> None:
    rows = texts_of("row", 300)
    config = DomainConfig.model_validate({part: write_rows(tmp_path / "rows.jsonl", rows), "eval_fraction": 0.2})
    texts = find_domain_texts("law", config)
    train, held_out = texts.read(False, 1000, 0), texts.read(True, 1000, 0)
    assert sorted(train + held_out) == sorted(rows)
    assert 0.1 < len(held_out) / 300 < (0.3 if part == "train" else 0.6)


def test_a_side_without_a_text_is_an_error_that_names_the_domain(tmp_path: Path) -> None:
    texts = find_domain_texts("law", DomainConfig(train=[write_rows(tmp_path / "rows.jsonl", ["one"])]))
    with pytest.raises(ValueError, match=r"domain 'law': no held-out text"):
        texts.read(True, 10, 0)


def test_the_identity_follows_the_content_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    paths = [tmp_path / "rows.jsonl", tmp_path / "moved" / "rows.jsonl"]
    here, moved = (find_domain_texts("law", DomainConfig(train=[write_rows(p, texts_of("a", 9))])) for p in paths)
    other = find_domain_texts("law", DomainConfig(train=[write_rows(tmp_path / "rows.jsonl", texts_of("b", 9))]))
    assert here.identity == moved.identity != other.identity
    json.dumps(here.identity)


def test_openings_are_long_enough_to_go_on_from(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tokenizer_folder)))
    rows = cut_openings(tokenizer, ["abcdefgh", "abc", "abcdefg"], 4)
    assert [tokenizer.decode(row) for row in rows] == ["abcd"]
    assert [tokenizer.decode(row) for row in cut_openings(tokenizer, ["abcdef", "abc"], 4)] == ["abcd"]
    assert cut_openings(tokenizer, ["abc"], 4) == []


def test_windows_have_the_form_of_generated_texts(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tokenizer_folder)))
    assert cut_windows(tokenizer, ["0123456789abc", "01234", "012", "   "], 4, 6) == ["456789", "4", "012"]
