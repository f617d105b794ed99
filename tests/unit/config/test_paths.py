"""Paths of a configuration: `~` and variables, spaces, letters of any script; and places that cannot be used."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError

from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
from orchestrator.config.sweep import SweepConfig
from orchestrator.views.console import plain_errors
from tests.runs import raymix, write_run


def config(**changes: Any) -> SweepConfig:
    data: dict[str, Any] = {
        "name": "n",
        "model": {"path": "o/m"},
        "domains": {"a": {"train": "a.jsonl"}},
        "mixing": {"type": "uniform"},
        "training": {"max_steps": 1},
    }
    return SweepConfig.model_validate(data | changes)


@pytest.mark.parametrize("prefix", ["~", "$HOME", "${HOME}", "$PLACE"])
def test_home_and_variables_are_written_out_wherever_a_path_may_stand(
    monkeypatch: pytest.MonkeyPatch, prefix: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    at = f"{prefix}/x y"
    found = config(
        output_dir=at,
        model={"path": at, "chat_template": at},
        domains={"a": {"train": [at, "b.jsonl"], "eval": at}, "b": {"hub": {"path": at}}},
        data={"cache_dir": at},
        mixing={"type": "versatune", "reference": at, "initial": f"{at}.json"},
        training={
            "max_steps": 1, "deepspeed": at, "strategy": {"type": "cofitune", "importance": {"files": [at]}}
        },
        start={"run": at},
    )  # fmt: skip
    text = found.model_dump_json()
    assert "~" not in text and "$" not in text
    assert text.count(f"{tmp_path}/x y") == 12
    assert found.domains["a"].train[1] == Path("b.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        {"domains": {"a": {"hub": {"path": "s3://bucket/a"}}}},
        {"model": {"path": "o/m", "chat_template": "s3://bucket/a.jinja"}},
        {"mixing": {"type": "versatune", "reference": "gs://bucket/a.json"}},
    ],
)
def test_a_uri_is_refused_as_what_it_is(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"://\S+ is a URI; give a file or folder"):
        config(**changes)


def test_a_name_that_is_there_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("$HOME.jsonl").write_text("{}")
    assert config(domains={"a": {"train": "$HOME.jsonl"}}).domains["a"].train == [Path("$HOME.jsonl")]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("$NO_SUCH_PLACE/a.jsonl", "the environment variable $NO_SUCH_PLACE is not set"),
        ("${NO_SUCH_PLACE}/a.jsonl", "the environment variable ${NO_SUCH_PLACE} is not set"),
        ("~nobody-at-all/a.jsonl", "there is no user 'nobody-at-all'"),
        ("", "is an empty path"),
    ],
)
def test_what_names_no_place_is_told(tmp_path: Path, path: str, words: str) -> None:
    file = write_run(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config(file, [f"domains.add.train={json.dumps(path)}", f"output_dir={json.dumps(path)}"])
    assert len(error.value.lines) == 2 and all(words in line for line in error.value.lines)


@pytest.mark.timeout(120)
def test_names_with_spaces_and_of_other_scripts_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "été и 数据"
    folder.mkdir()
    done = raymix("check", write_run(folder))
    assert done.returncode == 0, done.stderr
    assert "30 steps" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = raymix("run", write_run(tmp_path, output_dir=str(tmp_path / "locked" / "runs")))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "output_dir: " in done.stderr and "cannot write to " in done.stderr


@pytest.mark.parametrize("verb", ["check", "run"])
def test_an_output_folder_that_is_none_is_one_line(tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "runs"):
        done = raymix(verb, write_run(tmp_path, output_dir=str(path)))
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert f"output_dir: cannot write to {path} (" in done.stderr and "choose another folder" in done.stderr


def test_a_full_disk_is_told_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), plain_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/runs/small/events.jsonl")
    told = capsys.readouterr().err
    assert told.startswith("raymix: /data/runs/small/events.jsonl: No space left on device; free some, or choose")


def test_a_folder_in_place_of_a_configuration_is_told(tmp_path: Path) -> None:
    done = raymix("check", tmp_path)
    assert done.returncode == 2 and "is a folder; give the path of a YAML file" in done.stderr
    write_run(tmp_path)
    done = raymix("check", tmp_path)
    assert f"is a folder; give the path of a YAML file, such as {tmp_path / 'config.yaml'}" in done.stderr
    done = raymix("check", tmp_path / "confg.yaml")
    assert "No such file" in done.stderr and f"did you mean {str(tmp_path / 'config.yaml')!r}?" in done.stderr


@pytest.mark.parametrize(
    ("verb", "near"), [("rnu", "run"), ("chekc", "check"), ("tunes", "tune"), ("coarse_search", "coarse-search")]
)
def test_an_unknown_verb_names_the_nearest(verb: str, near: str) -> None:
    done = raymix(verb, "config.yaml")
    assert done.returncode == 2 and f"'{near}'" in done.stderr and verb in done.stderr
