"""Storage that a configuration names and that cannot be used: one line with the key, before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
from tests.objects import ObjectServer
from tests.runs import write_run
from workers.storage import client
from workers.storage.addresses import place_of


@pytest.mark.parametrize(
    ("changes", "environment", "words"),
    [
        ({"output_dir": "URI/runs"}, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "output_dir: .*SignatureDoesNotMatch"),
        ({"output_dir": "URI/runs"}, {"AWS_ACCESS_KEY_ID": None}, "output_dir: .*set AWS_ACCESS_KEY_ID and"),
        ({"output_dir": "URI/runs"}, "reader", "output_dir: .*AccessDenied"),
        ({"output_dir": "URI/runs"}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "output_dir: .*does not answer"),
        ({"output_dir": "nonsense://bucket/runs"}, {}, "output_dir: .*use s3://, gs://, hf:// or another scheme"),
        ({"output_dir": "sftp://host/runs"}, {}, "output_dir: .*a package is missing"),
        ({"domains__add__train": "URI/none.jsonl"}, {}, r"domains.add.train\[0\]: URI/none.jsonl: no such object"),
        (
            {"domains__add__train": "URI/a.jsonl"},
            {"AWS_ACCESS_KEY_ID": "nobody"},
            "domains.add.train.*403 Forbidden; check AWS_ACCESS_KEY_ID",
        ),
        ({"model__path": "URI/none"}, {}, "model.path: URI/none: no such folder"),
    ],
)
def test_it_is_refused_in_one_line(
    uri: str,
    server: ObjectServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    environment: Any,
    words: str,
) -> None:
    path = write_run(tmp_path, **{key: value.replace("URI", uri) for key, value in changes.items()})
    for name, value in (server.reader if environment == "reader" else environment).items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=words.replace("URI", uri)) as error:
        load_config(path)
    assert len(error.value.lines) == 1 and "\n" not in error.value.lines[0]


def test_what_can_be_used_is_accepted_and_leaves_nothing(uri: str, tmp_path: Path) -> None:
    path = write_run(tmp_path)
    for name in ("add", "copy", "law"):
        for part in ("train", "eval"):
            client.put(f"{uri}/data/{name}-{part}.jsonl", tmp_path / f"{name}-{part}.jsonl")
    for file in (tmp_path / "base").iterdir():
        client.put(f"{uri}/base/{file.name}", file)
    before = client.list_objects(uri).keys()
    path = write_run(
        tmp_path,
        output_dir=f"{uri}/runs",
        model__path=f"{uri}/base",
        domains__law={"train": f"{uri}/data/law-t*.jsonl", "eval": f"{uri}/data/law-eval.jsonl"},
    )
    config = load_config(path)
    assert config.folder == place_of(f"{uri}/runs/small")
    assert (Path(config.model.path) / "config.json").exists()
    assert client.list_objects(uri).keys() == before
