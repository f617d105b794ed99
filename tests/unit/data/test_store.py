"""Token stores and what fills them: shapes, masks, splits, long examples, keys, damage."""

import itertools
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.config.data import DataConfig, DomainConfig
from workers.data.files import Shard
from workers.data.preparing import DomainPlan, check_sides, fingerprint_tokenizer, pack_side, plan_domain
from workers.data.report import Report, check_bad_rows
from workers.data.store import TokenStore, publish
from workers.data.templates import Tokens
from workers.data.tokenization import SIDES, ShardTask, TokenShard, fit_example, hash_example, tokenize_shard

DATA = DataConfig(max_length=64)


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    from workers.config.model import ModelConfig
    from workers.model.tokenizer import load_tokenizer

    return load_tokenizer(ModelConfig(path=str(tokenizer_folder)))


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return path


def build(
    tokenizer: Any, config: DomainConfig, data: DataConfig, folder: Path
) -> tuple[DomainPlan, list[TokenShard], dict[str, TokenStore]]:
    folder.mkdir()
    plan = plan_domain("math", config, data, fingerprint_tokenizer(tokenizer))
    shards = [tokenize_shard(task, data, tokenizer, folder) for task in plan.tasks]
    check_sides(plan, shards, data)
    (folder / "stores").mkdir()
    for side in SIDES:
        pack_side(plan, side, shards, data, tokenizer.pad_token_id, folder / "stores")
    publish(folder / "stores", folder / plan.key)
    return plan, shards, {side: TokenStore.open(folder / plan.key / side) for side in SIDES}


def examples_of(store: TokenStore) -> list[tuple[list[int], list[bool]]]:
    """Every example of a store, cut out of its row where the positions restart."""
    found = []
    for row in range(store.num_rows):
        length = int(store.row_lengths[row])
        starts = [*np.flatnonzero(store.position_ids[row, :length] == 0), length]
        for start, end in itertools.pairwise(starts):
            found.append((store.input_ids[row, start:end].tolist(), store.loss_mask[row, start:end].tolist()))
    return found


ROWS = [
    (f"question {number % 90} {'x' * (number % 13)}", f"answer {number}"[: 1 + number % 9]) for number in range(300)
]


@pytest.mark.parametrize("packing", [True, False])
def test_a_store_holds_every_example_whole_and_once(tokenizer: Any, tmp_path: Path, packing: bool) -> None:
    data = DataConfig(max_length=160, packing=packing)
    config = DomainConfig(train=[write_rows(tmp_path / "a.jsonl", ROWS)], eval_fraction=0.2)
    plan, shards, stores = build(tokenizer, config, data, tmp_path / "cache")
    for side in SIDES:
        store = stores[side]
        flat = [
            (shard.array(side, "input_ids"), shard.array(side, "loss_mask"), shard.array(side, "lengths"))
            for shard in shards
        ]
        expected = [
            (ids.tolist(), mask.tolist())
            for all_ids, all_masks, lengths in flat
            for ids, mask in zip(
                np.split(all_ids, np.cumsum(lengths)[:-1]), np.split(all_masks, np.cumsum(lengths)[:-1]), strict=True
            )
        ]
        assert sorted(examples_of(store)) == sorted(expected)
        assert store.num_examples == len(expected) == store.row_examples.sum()
        assert store.input_ids.shape == store.position_ids.shape == store.loss_mask.shape == (store.num_rows, 160)
        assert store.input_ids.dtype == np.int32 and store.position_ids.dtype == np.uint16
        assert store.num_tokens == store.row_lengths.sum() and store.num_loss_tokens == store.loss_mask.sum()
        assert np.array_equal(store.row_loss_tokens, store.loss_mask.sum(axis=1))
        padding = np.arange(160) >= np.asarray(store.row_lengths)[:, None]
        assert (store.input_ids[padding] == tokenizer.pad_token_id).all()
        assert not store.loss_mask[padding].any() and not store.position_ids[padding].any()
        assert not any(mask[0] for _, mask in examples_of(store))
        assert store.fingerprint == f"{plan.key}-{side}" and not store.input_ids.flags.writeable
        assert (store.row_examples.max() > 1) == packing


def test_the_split_parts_no_prompt_and_is_stable(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        (f"  Question {number % 200}".upper() if number % 2 else f"question {number % 200}", "a")
        for number in range(800)
    ]
    config = DomainConfig(train=[write_rows(tmp_path / "a.jsonl", rows)], eval_fraction=0.25)
    _, shards, stores = build(tokenizer, config, DATA, tmp_path / "cache")
    prompts = {side: set(shards[0].array(side, "prompts").tolist()) for side in SIDES}
    assert not prompts["train"] & prompts["eval"]
    assert len(prompts["train"]) + len(prompts["eval"]) == 200 and 30 < len(prompts["eval"]) < 70
    assert not set(stores["train"].prompts.tolist()) & set(stores["eval"].prompts.tolist())
    task = ShardTask(
        domain="d",
        source=plan_domain("d", config, DATA, "t").tasks[0].source,
        shard=Shard(),
        side="train",
        eval_fraction=0.25,
    )
    assert task.side_of(2**62 - 1) == "eval" and task.side_of(2**62) == "train"


def test_a_store_keeps_the_hashes_of_its_prompts_and_examples_each_once_and_rising(
    tokenizer: Any, tmp_path: Path
) -> None:
    train = write_rows(tmp_path / "a.jsonl", [("q1", "a"), ("Q1 ", "b"), ("q2", "c"), ("q2", "c"), ("q2", "c")])
    evaluation = write_rows(tmp_path / "b.jsonl", [("q1", "z"), ("q1", "z"), ("q9", "z")])
    _, _, stores = build(tokenizer, DomainConfig(train=[train], eval=[evaluation]), DATA, tmp_path / "cache")
    for side, num_examples, num_distinct, num_prompts in (("train", 5, 3, 2), ("eval", 3, 2, 2)):
        store = stores[side]
        assert store.num_examples == num_examples
        assert len(store.distinct_examples) == store.manifest["num_distinct_examples"] == num_distinct
        assert len(store.prompts) == store.manifest["num_prompts"] == num_prompts
        for hashes in (store.prompts, store.distinct_examples):
            assert hashes.dtype == np.uint64 and (np.diff(hashes.astype(object)) > 0).all()
    common = set(stores["train"].prompts.tolist()) & set(stores["eval"].prompts.tolist())
    assert len(common) == 1  # q1, whatever its case and spacing


def test_examples_are_the_same_where_ids_and_targets_are() -> None:
    ids, targets = np.arange(9, dtype=np.int32), np.arange(9) > 4
    others = [Tokens(ids, np.arange(9) > 5), Tokens(ids + 1, targets), Tokens(ids[:8], targets[:8])]
    assert hash_example(Tokens(ids.copy(), targets.copy(), ("reasoning",))) == hash_example(Tokens(ids, targets))
    assert hash_example(Tokens(np.arange(18, dtype=np.int32)[::2] // 2, targets)) == hash_example(Tokens(ids, targets))
    assert len({hash_example(tokens) for tokens in [Tokens(ids, targets), *others]}) == 4


def test_long_examples_are_dropped_cut_or_split_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [("q", "a" * 200), ("p" * 100, "a"), ("q2", "short")])
    expected = {"drop": (1, 2), "truncate": (2, 1), "split": (6, 0)}
    for policy, (num_examples, num_lost) in expected.items():
        data = DATA.model_copy(update={"too_long": policy})
        config = DomainConfig(train=[path], eval=[path])
        _, shards, stores = build(tokenizer, config, data, tmp_path / policy)
        report = shards[0].report
        assert (report.num_too_long, report.num_too_long_lost) == (2, num_lost), policy
        assert stores["train"].num_examples == num_examples, policy
        assert stores["train"].manifest["report"]["num_too_long"] == 2


def test_split_pieces_are_the_example_and_their_first_token_is_no_target() -> None:
    tokens = Tokens(np.arange(150, dtype=np.int32), np.arange(150) >= 70)
    pieces = fit_example(tokens, DATA.model_copy(update={"too_long": "split"}))
    assert [(int(p.input_ids[0]), len(p.input_ids), int(p.loss_mask.sum())) for p in pieces] == [
        (64, 64, 58),
        (128, 22, 21),
    ]
    assert tokens.loss_mask[128]  # the example itself is left alone


def test_the_key_follows_the_content_and_the_options_only(tokenizer: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    config = DomainConfig(train=[path])
    fingerprint = fingerprint_tokenizer(tokenizer)
    key = plan_domain("math", config, DATA, fingerprint).key
    moved = DomainConfig(train=[write_rows(tmp_path / "moved.jsonl", ROWS)])
    tolerant = DATA.model_copy(update={"max_bad_fraction": 0.5, "bad_rows": "fail", "log_samples": True})
    assert plan_domain("other", moved, tolerant, fingerprint).key == key
    others = {
        plan_domain("math", DomainConfig(train=[path], eval=[path]), DATA, fingerprint).key,
        plan_domain("math", DomainConfig(train=[path, path]), DATA, fingerprint).key,
        plan_domain("math", DomainConfig(train=[path], eval_fraction=0.5), DATA, fingerprint).key,
        plan_domain(
            "math",
            DomainConfig(train=[path], fields={"prompt": "completion", "completion": "prompt"}),
            DATA,
            fingerprint,
        ).key,
        *(
            plan_domain("math", config, DATA.model_copy(update=change), fingerprint).key
            for change in ({"max_length": 65}, {"packing": False}, {"too_long": "split"})
        ),
    }
    tokenizer.chat_template += " "
    others.add(plan_domain("math", config, DATA, fingerprint_tokenizer(tokenizer)).key)
    tokenizer("x" * 99, truncation=True, max_length=5, padding="max_length")
    others.add(plan_domain("math", config, DATA, fingerprint_tokenizer(tokenizer)).key)
    path.write_text(path.read_text() + "\n")
    others.add(plan_domain("math", config, DATA, fingerprint).key)
    assert len(others) == 9 and key not in others


def test_a_torn_store_is_named(tokenizer: Any, tmp_path: Path) -> None:
    config = DomainConfig(train=[write_rows(tmp_path / "a.jsonl", ROWS)], eval_fraction=0.2)
    plan, _, stores = build(tokenizer, config, DATA, tmp_path / "cache")
    folder = stores["train"].folder
    assert pickle.loads(pickle.dumps(stores["train"])).num_rows == stores["train"].num_rows
    assert len(pickle.dumps(stores["train"])) < 1000
    with (folder / "loss_mask.npy").open("ab") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match=r"is damaged: loss_mask.npy has 200 bytes instead of") as error:
        TokenStore.open(folder)
    assert str(tmp_path / "cache" / plan.key) in str(error.value)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        TokenStore.open(folder)


def test_two_builders_of_one_store_do_not_hurt_each_other(tmp_path: Path) -> None:
    winners = []

    def publish_one(number: int) -> None:
        building = tmp_path / f".building-{number}"
        (building / "train").mkdir(parents=True)
        (building / "train" / "whole").write_text(str(number))
        barrier.wait()
        publish(building, tmp_path / "key")
        winners.append((tmp_path / "key" / "train" / "whole").read_text())

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=publish_one, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(winners) == 8 and len(set(winners)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_shards_together_give_the_rows_of_the_whole(tokenizer: Any, tmp_path: Path) -> None:
    rows = [(f"q {number}", "a" * (number % 30 + 1)) for number in range(1500)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text() + "broken\n")
    plan = plan_domain("d", DomainConfig(train=[path], eval_fraction=0.1), DATA, "t")
    tasks = [plan.tasks[0].model_copy(update={"shard": Shard(index, 3)}) for index in range(3)]
    parts = [tokenize_shard(task, DATA, tokenizer, tmp_path) for task in tasks]
    whole = tokenize_shard(plan.tasks[0], DATA, tokenizer, tmp_path)
    assert Report.merged([part.report for part in parts]) == whole.report
    for side in SIDES:
        assert sum(part.num_examples[side] for part in parts) == whole.num_examples[side]
        prompts = np.concatenate([part.array(side, "prompts") for part in parts])
        assert np.array_equal(np.sort(prompts), np.sort(whole.array(side, "prompts")))


def test_bad_rows_are_tolerated_up_to_the_limit(tokenizer: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [("q", "a")] * 97)
    path.write_text(path.read_text() + "{\n[]\n\x00\n")
    plan = plan_domain("law", DomainConfig(train=[path], eval=[path]), DATA, "t")
    report = tokenize_shard(plan.tasks[0], DATA, tokenizer, tmp_path).report
    check_bad_rows("law", DATA.model_copy(update={"max_bad_fraction": 0.03}), report)
    with pytest.raises(ValueError, match=r"domain 'law': 3 of 100 rows cannot be used.*0\.0300.*0\.02") as error:
        check_bad_rows("law", DATA.model_copy(update={"max_bad_fraction": 0.02}), report)
    for text in (f"{path}:98: not JSON", f"{path}:99: not an object", f"{path}:100: NUL byte", f"{path}: NUL byte: 1"):
        assert text in str(error.value)
    with pytest.raises(ValueError, match=r"domain 'law': .*a.jsonl:98: not JSON.*bad_rows: skip"):
        tokenize_shard(plan.tasks[0], DATA.model_copy(update={"bad_rows": "fail"}), tokenizer, tmp_path)


def test_only_the_first_cases_are_kept_but_all_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"x{number}": 1}}\n' for number in range(1500)))
    plan = plan_domain("law", DomainConfig(train=[path], format="text"), DATA, "t")
    tasks = [plan.tasks[0].model_copy(update={"shard": Shard(index, 2)}) for index in range(2)]
    report = Report.merged([tokenize_shard(task, DATA, tokenizer, tmp_path).report for task in tasks])
    assert [case.line for case in report.bad_row_cases] == list(range(1, 21))
    assert [(count.kind, count.num_rows) for count in report.bad_rows] == [("missing field", 1500)]


@pytest.mark.parametrize(
    ("rows", "change", "fraction", "message"),
    [
        ([("q", "a")] * 9, {}, 1e-9, r"domain 'math': no evaluation examples.* 9 .*eval_fraction"),
        ([("q", "a")] * 9, {}, 1 - 1e-9, r"domain 'math': no training examples: 9 rows"),
        ([("q" * 99, "a")] * 9, {}, 0.5, r"no training examples.* 9 were lost .*max_length 64 .*too_long"),
    ],
)
def test_an_empty_side_is_an_error_with_a_remedy(
    tokenizer: Any, tmp_path: Path, rows: list[tuple[str, str]], change: dict[str, Any], fraction: float, message: str
) -> None:
    config = DomainConfig(train=[write_rows(tmp_path / "a.jsonl", rows)], eval_fraction=fraction)
    with pytest.raises(ValueError, match=message):
        build(tokenizer, config, DATA.model_copy(update=change), tmp_path / "cache")
