"""A first configuration from a look at files."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from rich.console import Console

from orchestrator.init.looking import find_domains
from orchestrator.init.writing import init
from orchestrator.loading import load_config

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
    assert "95 % within 145 tokens" in Path("my.yaml").read_text()
    with pytest.raises(ValueError, match=r"my\.yaml is there already; name another file with --output"):
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
    with pytest.raises(ValueError, match=r"no .jsonl, .*feather file there"):
        find_domains([tmp_path])
    write(tmp_path / "law-test.jsonl")
    with pytest.raises(ValueError, match="domain 'law' has evaluation files alone"):
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
