"""What left the data, what is in it twice and what is given away: counted and said."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.prepare.findings import look_at_data
from orchestrator.prepare.token_stores import prepare_stores
from orchestrator.runs.records import DataRecord
from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
from workers.data import tokenization
from workers.data.templates import Tokens

Pair = tuple[str, str]
Look = Callable[..., DataRecord]


@pytest.fixture
def look(tokenizer_folder: Path, tmp_path: Path) -> Look:
    def of(domains: dict[str, dict[str, Any]], **data: Any) -> DataRecord:
        settings = DataConfig(**({"max_length": 64} | data))
        configs = {name: DomainConfig(**domain) for name, domain in domains.items()}
        model = ModelConfig(path=str(tokenizer_folder))
        return look_at_data(settings, prepare_stores(configs, settings, model, tmp_path / "cache"), None)

    return of


def lines(record: DataRecord, *kinds: str) -> list[str]:
    return [finding.line for finding in record.findings if not kinds or finding.kind in kinds]


def as_prompt(pair: Pair) -> dict[str, Any]:
    return {"prompt": pair[0], "completion": pair[1]}


def as_messages(pair: Pair) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]}


def as_sharegpt(pair: Pair) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]}


def as_alpaca(pair: Pair) -> dict[str, Any]:
    return {"instruction": pair[0], "input": "", "output": pair[1]}


def write(path: Path, pairs: Sequence[Pair], layout: Callable[[Pair], dict[str, Any]] = as_prompt) -> Path:
    path.write_text("".join(json.dumps(layout(pair)) + "\n" for pair in pairs))
    return path


def pairs(count: int, start: int = 0) -> list[Pair]:
    return [(f"Question {number}?", f"answer {number}") for number in range(start, start + count)]


def test_clean_data_has_nothing_to_say(look: Look, tmp_path: Path) -> None:
    files = {"train": write(tmp_path / "a.jsonl", pairs(20)), "eval": write(tmp_path / "b.jsonl", pairs(5, 50))}
    record = look({"law": files})
    assert record.findings == []
    assert record.domains["law"].train is not None and record.domains["law"].train.num_distinct == 20


def test_repeats_are_counted_over_files_formats_and_shards(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.data.sources._SHARD_BYTES", 20_000)  # several shards of the first file
    rows = pairs(1200)
    files = [
        write(tmp_path / "a.jsonl", rows + rows[:300]),
        write(tmp_path / "b.jsonl", rows[:100], as_messages),
        write(tmp_path / "c.jsonl", rows[100:150], as_sharegpt),
        write(tmp_path / "d.jsonl", rows[1000:1010], as_alpaca),
        write(tmp_path / "e.jsonl", [("question 0?", "answer 0"), ("Question 0?", "another answer")]),
    ]
    record = look({"law": {"train": files, "eval": write(tmp_path / "v.jsonl", pairs(5, 5000))}})
    # By case and by answer the last two are other examples.
    assert lines(record) == ["law: 460 of 1,662 rows repeat another (1,202 distinct)"]
    assert record.findings[0].severity == "warning"


def test_few_repeats_are_a_note(look: Look, tmp_path: Path) -> None:
    files = {"train": write(tmp_path / "a.jsonl", [*pairs(500), *pairs(1)])}
    record = look({"law": files | {"eval": write(tmp_path / "b.jsonl", pairs(5, 700))}})
    assert [(f.severity, f.message) for f in record.findings] == [
        ("note", "1 of 501 rows repeats another (500 distinct)")
    ]


def test_rows_held_out_twice_are_told(look: Look, tmp_path: Path) -> None:
    evaluation = write(tmp_path / "b.jsonl", [*pairs(4, 50), *pairs(3, 50)])
    record = look({"law": {"train": write(tmp_path / "a.jsonl", pairs(20)), "eval": evaluation}})
    assert lines(record) == ["law: 3 of 7 held-out rows repeat another (4 distinct)"]


@pytest.mark.parametrize("layout", [as_prompt, as_messages, as_sharegpt, as_alpaca])
def test_held_out_prompts_in_training_data_are_told(
    look: Look, tmp_path: Path, layout: Callable[[Pair], dict[str, Any]]
) -> None:
    odd = [(f"  QUESTION\t{number}? ", "another answer") for number in range(3)]
    train = write(tmp_path / "a.jsonl", pairs(20))
    evaluation = write(tmp_path / "b.jsonl", [*odd, *pairs(2, 90)], layout)
    clean = {"train": write(tmp_path / "c.jsonl", pairs(9, 200)), "eval": write(tmp_path / "d.jsonl", pairs(2, 300))}
    record = look(
        {
            "own": {"train": train, "eval": evaluation},
            "other": clean | {"eval": write(tmp_path / "e.jsonl", [*odd, ("x", "y")], layout)},
            "clean": clean,
            "measured": {"eval": evaluation},
        }
    )
    assert lines(record, "leak") == [
        "own: 3 of 5 held-out prompts are in the training data",
        "other: 3 of 4 held-out prompts are in the training data of domain 'own'",
        "measured: 3 of 5 held-out prompts are in the training data of domain 'own'",
    ]
    assert record.domains["own"].num_leaked_prompts == 3 and record.domains["clean"].num_leaked_prompts == 0


def test_prompts_that_are_not_trained_on_do_not_leak(look: Look, tmp_path: Path) -> None:
    """Rows that are set aside, not chosen or excluded are in the file and not in the training data."""
    files = write(tmp_path / "a.jsonl", pairs(40))
    held_out = write(tmp_path / "b.jsonl", pairs(40))
    record = look(
        {
            "set aside": {"train": files, "eval_fraction": 0.4},
            "chosen": {"train": files, "count": 10, "eval": held_out},
            "excluded": {"train": files, "exclude": [{"pattern": r"question [0-9]\?"}], "eval": held_out},
        }
    )
    in_own = {name: domain.leaked_prompts.get(name, 0) for name, domain in record.domains.items()}
    assert in_own == {"set aside": 0, "chosen": 10, "excluded": 30}
    assert "chosen: 30 of 40 training examples are left out by `fraction` or `count`" in lines(record)
    assert "excluded: 10 of 40 rows are left out by `exclude`" in lines(record)
    assert {f.severity for f in record.findings if f.kind in ("excluded", "not_chosen")} == {"note"}


def test_the_same_example_or_file_in_two_domains_is_told_once_with_both_names(look: Look, tmp_path: Path) -> None:
    rows = pairs(20)
    one, copy = write(tmp_path / "one.jsonl", rows), write(tmp_path / "copy.jsonl", rows)
    part = write(tmp_path / "part.jsonl", rows[:3] + pairs(9, 400), as_messages)
    held_out = write(tmp_path / "v.jsonl", pairs(5, 900))
    record = look(
        {
            "a": {"train": one, "eval": held_out},
            "b": {"train": copy, "eval": held_out},
            "c": {"train": [part, part], "eval": write(tmp_path / "w.jsonl", pairs(5, 800))},
        }
    )
    assert lines(record, "shared") == [
        "a: 20 training examples are also in domain 'b'",
        "a: 3 training examples are also in domain 'c'",
        "b: 3 training examples are also in domain 'c'",
    ]
    assert lines(record, "same_file") == [
        f"a: the same file twice: {one} (domain 'a', train), {copy} (domain 'b', train)",
        f"a: the same file twice: {held_out} (domain 'a', eval), {held_out} (domain 'b', eval)",
        f"c: the same file twice: {part} (train), {part} (train)",
    ]
    assert [f.severity for f in record.findings if f.kind == "same_file"] == ["warning", "note", "warning"]
    assert lines(record, "duplicates") == ["c: 12 of 24 rows repeat another (12 distinct)"]


def cut_by_definition(lengths: list[Pair], policy: str, max_length: int) -> tuple[int, int, int, int]:
    """(too long, nothing left, tokens lost, targets lost) of byte-tokenised rows under the built-in template."""
    num_long = num_lost = tokens_lost = targets_lost = 0
    for prompt, answer in lengths:
        before, targets = 1 + len(f"### User:\n{prompt}\n\n### Assistant:\n"), len(answer) + 1
        total = before + targets
        if total <= max_length:
            continue
        num_long += 1
        starts = {"drop": [], "truncate": [0], "split": list(range(0, total, max_length))}[policy]
        kept_tokens = kept_targets = 0
        for start in starts:
            piece = range(start, min(start + max_length, total))
            learned = sum(1 for place in piece if place >= before and place != start)
            kept_tokens += len(piece) if learned else 0
            kept_targets += learned
        num_lost += not kept_targets
        tokens_lost += total - kept_tokens
        targets_lost += targets - kept_targets
    return num_long, num_lost, tokens_lost, targets_lost


@pytest.mark.parametrize("policy", ["drop", "truncate", "split"])
@pytest.mark.parametrize("max_length", [64, 77])
def test_what_is_cut_is_counted_in_rows_tokens_and_targets(
    look: Look, tmp_path: Path, policy: str, max_length: int
) -> None:
    rng = random.Random(max_length)
    rows = [("q" * rng.randrange(1, 150), "a" * rng.randrange(1, 150)) for _ in range(200)]
    evaluation = [("v" * 60, "a" * 10), ("v", "a")]
    record = look(
        {"law": {"train": write(tmp_path / "a.jsonl", rows), "eval": write(tmp_path / "b.jsonl", evaluation)}},
        max_length=max_length,
        too_long=policy,
    )
    report = record.domains["law"].train_files
    num_long, num_lost, tokens, targets = cut_by_definition(rows, policy, max_length)
    assert 0 < num_long < 200
    counted = (report.num_too_long, report.num_too_long_lost, report.num_tokens_cut, report.num_targets_cut)
    assert counted == (num_long, num_lost, tokens, targets)
    assert report.num_without_target == (0 if policy == "drop" else num_lost)
    of_train, of_eval = lines(record, "too_long")
    done = {"drop": "left out", "truncate": "cut to it", "split": "split at it"}[policy]
    assert of_train.startswith(
        f"law: {num_long} of 200 rows are longer than data.max_length {max_length} and {done} "
        f"(data.too_long: {policy}): {tokens:,} tokens lost, {targets:,} of them targets"
    )
    assert ("no target left" in of_train) == (policy != "drop" and num_lost > 0)
    assert of_eval.startswith("law: 1 of 2 evaluation rows is longer")


def test_pieces_of_a_split_example_count_as_examples(look: Look, tmp_path: Path) -> None:
    rows = [("q", "a" * 200), ("q", "a" * 200)]
    files = {"train": write(tmp_path / "a.jsonl", rows), "eval": write(tmp_path / "b.jsonl", pairs(2, 50))}
    record = look({"law": files}, too_long="split")
    (line,) = lines(record, "duplicates")
    # 1 + 27 + 200 + 1 tokens fall into four pieces, of which the second and the third are the same too.
    assert line == "law: 5 of 8 examples repeat another (3 distinct)"


def test_what_the_template_drops_is_counted_by_rows(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tokenization.tokenize_examples

    def with_drops(tokenizer: Any, examples: Any) -> list[Tokens | str]:
        results = plain(tokenizer, examples)
        words = {"2": ("reasoning", "reasoning"), "3": ("reasoning", "tools")}
        return [
            result
            if isinstance(result, str)
            else Tokens(result.input_ids, result.loss_mask, words.get(example.messages[0]["content"][-2], ()))
            for example, result in zip(examples, results, strict=True)
        ]

    monkeypatch.setattr(tokenization, "tokenize_examples", with_drops)
    files = {"train": write(tmp_path / "a.jsonl", pairs(5)), "eval": write(tmp_path / "b.jsonl", pairs(1, 12))}
    record = look({"law": files})
    assert record.domains["law"].train_files.dropped == {"reasoning": 2, "tools": 1}
    assert lines(record, "dropped") == [
        "law: reasoning is dropped by the template in 2 rows",
        "law: tools are dropped by the template in 1 row",
        "law: reasoning is dropped by the template in 1 evaluation row",
    ]


def test_bad_rows_are_told_by_reason_and_place(look: Look, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(20))
    path.write_text(path.read_text() + '[]\n{"prompt": 3, "completion": "a"}\n[]\n')
    record = look({"law": {"train": path, "eval_fraction": 0.3}}, max_bad_fraction=0.5)
    reason = "not an object: the row is a list"
    assert lines(record) == [
        f"law: 3 of 23 rows cannot be used: not an object (2), wrong type (1); first {path}:21: {reason}"
    ]


@pytest.mark.parametrize("amount", [{"fraction": 0}, {"count": 0}])
def test_rows_of_a_domain_that_is_measured_on_its_training_files_are_counted(
    look: Look, tmp_path: Path, amount: dict[str, int]
) -> None:
    path = write(tmp_path / "a.jsonl", [*pairs(30), ("q", "a" * 99)])
    path.write_text(path.read_text() + "{\n")
    domain = {"train": path, "eval_fraction": 0.5, **amount}
    record = look({"law": domain}, max_bad_fraction=0.5)
    counts = record.domains["law"]
    assert counts.train is None and counts.train_files.num_rows == 32 and counts.eval_files.num_rows == 0
    assert [line.partition(" rows")[0] for line in lines(record)] == ["law: 1 of 32", "law: 1 of 32"]


def test_conversations_that_ask_nothing_are_told_apart_by_their_answers(look: Look, tmp_path: Path) -> None:
    def greeting(number: int) -> dict[str, Any]:
        return {"messages": [{"role": "assistant", "content": f"Welcome {number}."}]}

    train, evaluation = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    train.write_text("".join(json.dumps(greeting(number)) + "\n" for number in range(20)))
    evaluation.write_text("".join(json.dumps(greeting(number)) + "\n" for number in (3, 77, 78)))
    record = look({"law": {"train": train, "eval": evaluation}})
    assert lines(record) == ["law: 1 of 3 held-out prompts is in the training data"]


def test_a_record_survives_being_written(look: Look, tmp_path: Path) -> None:
    rows = [*pairs(5), *pairs(5)]
    record = look({"law": {"train": write(tmp_path / "a.jsonl", rows), "eval": write(tmp_path / "b.jsonl", pairs(5))}})
    assert record.findings and DataRecord.model_validate_json(record.model_dump_json()) == record
    assert np.isfinite(record.domains["law"].eval.num_tokens)
