"""A first configuration from a look at files."""

import gzip
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from rich.console import Console

from orchestrator.cli.init.looking import find_domains
from orchestrator.cli.init.writing import init
from orchestrator.config.load import load_config

TURNS = {"messages": [{"role": "user", "content": "q " * 40}, {"role": "assistant", "content": "a" * 500}]}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows or [TURNS] * 3).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_names_of_files_and_folders_make_domains(tmp_path: Path) -> None:
    for name in ("math/train.jsonl.gz", "math/test.jsonl.gz", "law-train.jsonl", "law_eval.jsonl", "code-1.jsonl"):
        write(tmp_path / name)
    write(tmp_path / "code-2.jsonl")
    (tmp_path / "README.md").write_text("not data")
    found = {domain.name: domain for domain in find_domains([tmp_path])}
    files = {name: ([p.name for p in d.train], [p.name for p in d.eval]) for name, d in found.items()}
    assert files == {
        "code": (["code-1.jsonl", "code-2.jsonl"], []),
        "law": (["law-train.jsonl"], ["law_eval.jsonl"]),
        "math": (["train.jsonl.gz"], ["test.jsonl.gz"]),
    }
    assert all(d.format == "messages" and d.num_bad_rows == 0 and d.tokens_95 == 145 for d in found.values())


def test_fields_of_other_names_are_found_or_told(tmp_path: Path) -> None:
    write(tmp_path / "asked.jsonl", {"question": "q", "answer": "a"}, {"question": "q", "answer": ""}, "torn")
    write(tmp_path / "odd.jsonl", {"left": "l", "right": "r"})
    asked, odd = find_domains([tmp_path / "asked.jsonl", tmp_path / "odd.jsonl"])
    assert (asked.format, asked.fields) == ("prompt_completion", {"prompt": "question", "completion": "answer"})
    assert (asked.num_rows_seen, asked.num_bad_rows) == (3, 2)
    assert odd.format is None and odd.keys == ["left", "right"]


def test_preference_data_is_not_named_as_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format in the file would switch the refusal off."""
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "q", "completion": "a"}
    write(tmp_path / "liked.jsonl", row | {"label": True}, row | {"label": False})
    write(tmp_path / "law.jsonl", {"question": "q", "answer": "a", "question\nfoo: bar": "x"})
    (liked,) = find_domains([tmp_path / "liked.jsonl"])
    assert liked.format is None and "`label` marks rows as good or bad" in str(liked.refusal)
    init([tmp_path], "some/model", Path("my.yaml"), 0, Console(file=io.StringIO()))
    config = load_config(Path("my.yaml"))
    assert (config.domains["liked"].format, config.domains["law"].format) == ("auto", "prompt_completion")
    assert "# 1 file; preference data: `label` marks" in Path("my.yaml").read_text()


def test_names_of_columns_never_leave_their_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a\nresponse_a", "a\nresponse_b", "a\u2028\x85\x07"]
    write(tmp_path / "odd.jsonl", {"prompt": "q", **dict.fromkeys(names, "x")})
    init([tmp_path], "some/model", Path("my.yaml"), 0, Console(file=io.StringIO()))
    assert "preference data: `a response_a` and `a response_b`" in Path("my.yaml").read_text()
    assert load_config(Path("my.yaml")).domains["odd"].format == "auto"


@pytest.mark.parametrize("num_gpus", [0, 4])
def test_what_is_written_loads_and_says_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_gpus: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/yes/train.jsonl", "data/it's: #1.jsonl", "data/law/train.jsonl", "data/law/dev.jsonl"):
        write(Path(name))
    console = Console(file=io.StringIO())
    init([Path("data")], "some/model", Path("my.yaml"), num_gpus, console)
    config = load_config(Path("my.yaml"), check_files=False)
    assert list(config.domains) == ["it-s-1", "law", "yes"]
    assert config.domains["it-s-1"].train == [Path("data/it's: #1.jsonl")]
    assert config.domains["law"].eval == [Path("data/law/dev.jsonl")] and not config.domains["yes"].eval
    assert config.data.max_length == 256 and config.cluster.num_workers == (num_gpus or 2)
    assert "95 % within 145 tokens (estimated)" in Path("my.yaml").read_text()
    assert "estimated at 4 bytes per token" in Path("my.yaml").read_text()
    with pytest.raises(ValueError, match=r"my\.yaml already exists; name another file with --output"):
        init([Path("data")], "some/model", Path("my.yaml"), num_gpus, console)


def test_no_more_tokens_than_the_model_was_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("law.jsonl"))
    Path("base").mkdir()
    for given, proposed in (('{"max_position_embeddings": 128}', 128), ('{"max_position_embeddings": 9000}', 256)):
        (Path("base") / "config.json").write_text(given)
        init([Path("law.jsonl")], "base", Path(f"{proposed}.yaml"), 0, Console(file=io.StringIO()))
        assert load_config(Path(f"{proposed}.yaml")).data.max_length == proposed


def test_nothing_to_train_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        find_domains([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"no .jsonl, .*feather file found"):
        find_domains([tmp_path])
    write(tmp_path / "law-test.jsonl")
    with pytest.raises(ValueError, match="domain 'law' has only evaluation files"):
        find_domains([tmp_path])


def test_every_kind_is_found_and_a_saved_data_set_is_named_as_a_folder(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([TURNS] * 3)
    (tmp_path / "data" / "chat").mkdir(parents=True)
    write(tmp_path / "data" / "chat" / "train.ndjson")
    pyarrow.parquet.write_table(table, tmp_path / "data" / "code-00000-of-00002.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "data" / "code-00001-of-00002.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "data" / "law-train.feather")
    (tmp_path / "data" / "maths.csv").write_text("question,answer\n1+1?,2\n")
    (tmp_path / "data" / "talk.tsv").write_text("messages\n" + json.dumps(TURNS["messages"]) + "\n")
    (tmp_path / "data" / ".cache").mkdir()
    write(tmp_path / "data" / ".cache" / "x.jsonl")
    made = datasets.Dataset.from_list([TURNS] * 3)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "data" / "saved")
    found = {domain.name: domain for domain in find_domains([tmp_path / "data"])}
    assert {name: domain.format for name, domain in found.items()} == {
        "chat": "messages", "code": "messages", "law": "messages", "maths": "prompt_completion", "saved": "messages",
        "talk": "messages",
    }  # fmt: skip
    assert found["maths"].fields == {"prompt": "question", "completion": "answer"}
    assert len(found["code"].train) == 2 and found["talk"].num_bad_rows == 0
    assert found["saved"].train == [tmp_path / "data" / "saved" / "train"]
    assert found["saved"].eval == [tmp_path / "data" / "saved" / "test"]


def lengths_under(tokenizer_folder: Path, path: Path) -> list[int]:
    """Tokens of every row, by the definition of the built-in template and a tokenizer of bytes."""
    lengths = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        text = f"### User:\n{row['prompt']}\n\n### Assistant:\n{row['completion']}"
        lengths.append(2 + len(text.encode()))  # and BOS and EOS
    return lengths


@pytest.mark.parametrize(
    ("sizes", "context", "expected"),
    [
        (range(1, 401), None, 512),  # 95 % are within 380 and the template
        ([20] * 94 + [6000] * 6, None, 6144),
        ([20] * 96 + [6000] * 4, None, 256),
        ([20] * 50 + [900] * 50, 512, 512),
        ([*range(600, 1000), *[30] * 9600], None, 256),  # sorted: the first rows alone would mislead
    ],
    ids=["usual", "beyond the list", "a few", "context", "sorted"],
)
def test_the_length_that_is_written_fits_what_its_comment_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer_folder: Path,
    sizes: list[int],
    context: int | None,
    expected: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {n}", "completion": "\u00e4" * (size // 2)} for n, size in enumerate(sizes)]
    path = write(Path("law.jsonl"), *rows)
    base = Path(shutil.copytree(tokenizer_folder, "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context or 100_000}))
    init([path], "base", Path("made.yaml"), 0, Console(file=io.StringIO()))
    made, text = load_config(Path("made.yaml")), Path("made.yaml").read_text()
    assert made.data.max_length == expected
    lengths = lengths_under(base, path)[:10_000]
    said = float(re.findall(r"([\d.]+) % of the examples seen fit", text)[0])
    fitting = sum(length <= expected for length in lengths) / len(lengths)
    if len(lengths) <= 1000:
        assert 0 <= 100 * fitting - said < 0.11  # rounded down
    else:
        assert abs(100 * fitting - said) < 1.5  # of many, a thousand are counted
    assert fitting >= 0.95 or "the model's full context" in text
    assert "counted by the model's tokenizer" in text


@pytest.mark.parametrize("num_rows", [999, 1000, 1001, 2718, 9277, 12_000])
def test_what_is_counted_lies_evenly_over_the_rows_seen(tmp_path: Path, num_rows: int) -> None:
    path = write(tmp_path / "law.jsonl", *[{"prompt": "p", "completion": "x" * (n + 1)} for n in range(num_rows)])
    (law,) = find_domains([path])
    seen = min(num_rows, 10_000)
    assert law.num_rows_seen == seen and law.is_whole == (num_rows <= 10_000)
    assert len(law.lengths) == min(seen, 1000) and law.lengths[0] == 0
    assert law.lengths == sorted(law.lengths) and law.lengths[-1] * 4 > seen - 15
    assert abs(law.fraction_within(seen // 8) - 0.5) < 0.01  # 4 bytes a token


@pytest.mark.parametrize("num_rows", [2, 3, 5, 12, 40, 90])
@pytest.mark.parametrize("word", ["question", "Frage", "\u95ee"])
def test_a_small_domain_is_written_with_a_fraction_that_sets_rows_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path, num_rows: int, word: str
) -> None:
    from orchestrator.prepare.token_stores import prepare_stores

    monkeypatch.chdir(tmp_path)
    (base := tmp_path / "base").mkdir()
    shutil.copytree(tokenizer_folder, base, dirs_exist_ok=True)
    # The last prompt is longer than a row, so nothing is left of it to set aside.
    rows = [
        {"prompt": f"{word} {n}" + "x" * (90_000 if n == 0 and num_rows > 2 else 0), "completion": "a"}
        for n in range(num_rows)
    ]
    path = write(Path("tiny.jsonl"), *rows)
    init([path], "base", Path("made.yaml"), 0, Console(file=io.StringIO()))
    config = load_config(Path("made.yaml"))
    stores = prepare_stores(config.domains, config.data, config.model, tmp_path / "cache")["tiny"]
    assert stores.train is not None and stores.train.num_examples >= stores.eval.num_examples >= 1
    assert stores.eval.num_examples >= min(16, num_rows // 6)


def test_one_prompt_alone_cannot_be_parted_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("law.jsonl"))  # three times the same
    init([Path("law.jsonl")], "some/model", Path("made.yaml"), 0, Console(file=io.StringIO()))
    assert "one prompt cannot be split; give `eval` files" in Path("made.yaml").read_text()
