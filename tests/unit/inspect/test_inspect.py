"""What `raymix inspect` shows: the text that the model sees, what of it is learned, and what is refused."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.inspect.driver import SeenExample, print_legend, print_seen, read_split, to_json
from tests.runs import write_run
from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
from workers.data.preparing import fingerprint_tokenizer, plan_domain
from workers.data.templates import Tokens
from workers.data.tokenization import Piece
from workers.model.tokenizer import load_tokenizer


def inspect(file: Path, *options: str) -> tuple[list[dict[str, Any]], Any]:
    done = CliRunner().invoke(app, ["inspect", str(file), "--json", *options])
    return [json.loads(line) for line in done.stdout.splitlines()], done


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def turns(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]}


def one_domain(tmp_path: Path, *overrides: str, **domain: Any) -> tuple[Path, list[str]]:
    file = write_run(tmp_path, domains={"law": {name: str(value) for name, value in domain.items()}})
    options = [part for override in ("mixing={type: uniform}", *overrides) for part in ("--set", override)]
    return file, options


def test_a_line_has_the_text_its_targets_and_the_place(tmp_path: Path) -> None:
    train = write_rows(
        tmp_path / "rows.jsonl",
        turns("Where?", "In K\u00f6ln \u2713", "And now?", "Here."),
        "torn",
        turns("What?", "Nothing.", "a <eos> b", "x"),
        turns("q" * 200, "a"),
    )
    file, options = one_domain(tmp_path, train=train)
    good, torn, control, long = inspect(file, "--domain", "law", *options, "--set", "data.max_length=120")[0]
    assert good == {
        "domain": "law",
        "split": "train",
        "file": str(train),
        "line": 1,
        "text": "<bos>### User:\nWhere?\n\n### Assistant:\nIn K\u00f6ln \u2713<eos>"
        "\n\n### User:\nAnd now?\n\n### Assistant:\nHere.<eos>",
        "targets": ["In K\u00f6ln \u2713<eos>", "Here.<eos>"],
        "num_tokens": good["num_tokens"],
        "num_targets": len("In K\u00f6ln \u2713".encode()) + len("Here.") + 2,
    }
    assert good["num_tokens"] == len(good["text"].replace("<bos>", "0").replace("<eos>", "0").encode())
    place = {"domain": "law", "split": "train", "file": str(train)}
    assert torn.items() > (place | {"line": 2}).items() and torn["refused"].startswith("not JSON")
    assert control == place | {"line": 3, "refused": "control token in the text: '<eos>'"}
    assert long == place | {
        "line": 4,
        "refused": "left out: 230 tokens, data.max_length 120 (data.too_long: drop)",
    }


def test_all_domains_are_shown_in_the_order_of_their_files(tmp_path: Path) -> None:
    found, done = inspect(write_run(tmp_path), "--rows", "3")
    assert done.exit_code == 0
    places = [(row["domain"], Path(row["file"]).name, row["line"]) for row in found]
    assert places == [(name, f"{name}-train.jsonl", line) for name in ("add", "copy", "law") for line in (1, 2, 3)]
    found, _ = inspect(write_run(tmp_path), "--rows", "1", "--split", "eval", "--domain", "copy")
    assert [(row["split"], Path(row["file"]).name, row["line"]) for row in found] == [("eval", "copy-eval.jsonl", 1)]
    assert not (tmp_path / "runs").exists()  # no store is built


def test_rows_set_aside_are_shown_on_their_side_only(tmp_path: Path) -> None:
    rows = [turns(f"question {number}", "a") for number in range(700)]  # more than a block of lines
    train = write_rows(tmp_path / "rows.jsonl", *rows, "torn")
    file, options = one_domain(tmp_path, train=train, eval_fraction=0.3)
    parts = {split: inspect(file, "--rows", "999", "--split", split, *options)[0] for split in ("train", "eval")}
    lines = {split: [row["line"] for row in part] for split, part in parts.items()}
    assert sorted(lines["train"] + lines["eval"]) == list(range(1, 702)) and 150 < len(lines["eval"]) < 270
    assert all(numbers == sorted(numbers) for numbers in lines.values())
    assert lines["train"][-1] == 701 and "refused" in parts["train"][-1]  # a torn row is its file's
    from orchestrator.prepare.token_stores import prepare_stores

    model = ModelConfig(path=str(tmp_path / "base"))
    config = DomainConfig(train=[train], eval_fraction=0.3)
    store = prepare_stores({"law": config}, DataConfig(max_length=64), model, tmp_path / "cache")["law"].eval
    assert store.num_examples == len(lines["eval"])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("truncate", [(1, 64, 34)]),
        ("split", [(1, 64, 34), (2, 64, 63), (3, 3, 2)]),
    ],
)
def test_what_is_left_of_a_long_example_is_shown_piece_by_piece(
    tmp_path: Path, policy: str, expected: list[tuple[int, int, int]]
) -> None:
    train = write_rows(tmp_path / "rows.jsonl", turns("qq", "a" * 100), turns("q" * 64, "a"))
    file, options = one_domain(tmp_path, f"data.too_long={policy}", train=train)
    *pieces, last = inspect(file, *options)[0]
    assert [(row["piece"], row["num_tokens"], row["num_targets"]) for row in pieces] == expected
    assert {(row["num_pieces"], row["num_tokens_whole"], row["num_targets_whole"]) for row in pieces} == {(3, 131, 101)}
    if policy == "truncate":
        assert "94 tokens, data.max_length 64, and no target in the first piece" in last["refused"]
    else:
        assert (last["piece"], last["num_pieces"], last["targets"]) == (2, 2, ["a<eos>"])


def test_what_is_not_on_this_side_is_said(tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl", *[turns(f"q {number}", "spam" if number else "a") for number in range(9)]
    )
    file, options = one_domain(tmp_path, eval=rows)
    both = f"domains={{law: {{eval: {rows}}}, add: {{train: {rows}}}}}"
    found, done = inspect(file, *options, "--set", both)
    assert {row["domain"] for row in found} == {"add"}
    assert "law: only measured" in done.stderr
    file, options = one_domain(tmp_path, "domains.law.exclude=[{pattern: spam}]", "domains.law.count=1", train=rows)
    found, done = inspect(file, *options)
    assert len(found) <= 1 and "8 rows in between were left out by `exclude`" in done.stderr
    assert "`fraction` or `count` selects part" in done.stderr


def test_faults_are_told_in_a_line_and_hide_no_other_domain(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    _, done = inspect(file, "--domain", "lwa")
    assert done.exit_code == 2 and "--domain lwa: no such domain; did you mean 'law'?" in done.stderr
    write_rows(tmp_path / "copy-train.jsonl", {"left": "l", "right": "r"})
    found, done = inspect(file, "--rows", "1")
    assert [row["domain"] for row in found] == ["add", "law"] and done.exit_code == 1
    assert "domain 'copy': " in done.stderr and "cannot detect the format" in done.stderr


def show(tokens: Tokens, folder: Path, **console: Any) -> str:
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    output = io.StringIO()
    screen = Console(file=output, width=40, **console)
    piece, whole = Piece(2, 3, tokens), Tokens(np.zeros(50, dtype=np.int32), np.arange(50) < 9)
    print_legend(screen)
    print_seen(SeenExample("law", "train", "a.jsonl", 7, piece, whole), tokenizer, screen)
    return output.getvalue()


def ids_of(folder: Path, text: str) -> Any:
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def test_targets_stand_in_brackets_where_there_is_no_colour(tokenizer_folder: Path) -> None:
    ids = ids_of(tokenizer_folder, "Frage: \u00e4 und \x1b[31m?<eos>\tnoch eine")
    mask = [index in range(7, 14) or index >= len(ids) - 3 for index in range(len(ids))]
    text = show(Tokens(ids, np.array(mask), ("reasoning",)), tokenizer_folder)
    assert "law, train  a.jsonl:7" in text and f"{len(ids)} tokens, 10 targets" in text
    assert "piece 2 of 3 (whole example: 50 tokens, 9 targets)" in text and "the template drops: reasoning" in text
    assert "Frage: \u27e6\u00e4 und \u27e7\\x1b[31m?<eos>   noch e\u27e6ine\u27e7\n" in text  # and on one line
    assert "\x1b" not in text and text.startswith("targets, which are learned, are in \u27e6\u27e7")


def test_targets_have_a_colour_of_their_own_in_a_terminal(tokenizer_folder: Path) -> None:
    tokens = Tokens(ids_of(tokenizer_folder, "ab<eos>"), np.array([False, True, True]))
    text = show(tokens, tokenizer_folder, force_terminal=True, color_system="standard")
    assert "\x1b[2ma\x1b[0m\x1b[32mb\x1b[0m\x1b[1;32m<eos>\x1b[0m" in text and "\u27e6" not in text
    bare = show(tokens, tokenizer_folder, force_terminal=True, no_color=True)
    assert "a\u27e6" in re.sub("\x1b\\[[0-9;]*m", "", bare)


def test_what_the_template_drops_is_in_the_line(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tokenizer_folder)))
    config = DomainConfig(train=[write_rows(tmp_path / "rows.jsonl", turns("q", "a"))], eval_fraction=1e-9)
    plan = plan_domain("law", config, DataConfig(max_length=64), fingerprint_tokenizer(tokenizer))
    (seen,) = read_split(plan, "train", DataConfig(max_length=64), tokenizer)
    assert isinstance(seen, SeenExample) and "dropped" not in json.loads(to_json(seen, tokenizer))
    tokens = Tokens(seen.piece.tokens.input_ids, seen.piece.tokens.loss_mask, ("reasoning", "tools"))
    dropping = SeenExample("law", "train", "f", 1, Piece(1, 1, tokens), tokens)
    assert json.loads(to_json(dropping, tokenizer))["dropped"] == ["reasoning", "tools"]
