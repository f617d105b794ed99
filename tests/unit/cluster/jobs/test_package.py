"""What travels with a job."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster.jobs import package
from orchestrator.cluster.jobs.package import write_package
from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
from orchestrator.config.sweep import SweepConfig
from workers.data.locations import find_files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with files in it and beside it."""
    folder = tmp_path / "project"
    for path in ("data/a.jsonl", "data/a-eval.jsonl", "base/config.json", "ref.json", "../beside/b.jsonl"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps({"from": path}))
    monkeypatch.chdir(folder)
    return folder


def config(**changes: Any) -> SweepConfig:
    data: dict[str, Any] = {
        "name": "n",
        "output_dir": "/shared/runs",
        "model": {"path": "base"},
        "domains": {
            "a": {"train": "data/a.jsonl", "eval": "data/a-eval.jsonl"},
            "b": {"train": ["../beside/b.jsonl", "/shared/b.jsonl"], "eval_fraction": 0.1},
        },
        "mixing": {"type": "versatune", "reference": "ref.json"},
        "training": {"max_steps": 3},
        "cluster": {"address": "1.2.3.4:6379", "num_workers": 2, "runtime_env": {"pip": ["x"]}},
    }
    return SweepConfig.model_validate(data | changes)


def test_relative_paths_travel_and_absolute_ones_stay(here: Path, tmp_path: Path, monkeypatch: Any) -> None:
    travels = tmp_path / "package"
    travels.mkdir()
    write_package(config(), travels)
    names = sorted(str(path.relative_to(travels)) for path in travels.rglob("*") if path.is_file())
    assert names == [
        "base/config.json",
        "config.yaml",
        "data/a-eval.jsonl",
        "data/a.jsonl",
        "ref.json",
        "up/beside/b.jsonl",
    ]
    assert json.loads((travels / "up/beside/b.jsonl").read_text()) == {"from": "../beside/b.jsonl"}
    monkeypatch.chdir(travels)
    there = load_config(travels / "config.yaml", check_files=False)
    assert there.domains["b"].train == [Path("up/beside/b.jsonl"), Path("/shared/b.jsonl")]
    assert there.domains["a"].train == [Path("data/a.jsonl")] and there.model.path == "base"
    assert (there.cluster.address, there.cluster.num_workers, there.cluster.runtime_env) == ("auto", 2, {})
    assert there.output_dir == Path("/shared/runs")
    assert there.training == config().training and there.mixing == config().mixing


def test_the_same_configuration_travels_the_same_way_twice(here: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_package(config(), tmp_path / name)
    texts = [(tmp_path / name / "config.yaml").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1] and yaml.safe_load(texts[0])["name"] == "n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": "runs"}, "output_dir: runs is relative; give the absolute path of a folder that all"),
        ({"data": {"cache_dir": "stores"}}, "data.cache_dir: stores is relative"),
        ({"model": {"path": "base"}, "mixing": {"type": "versatune", "reference": "no.json"}}, "no.json: no such file"),
    ],
)
def test_what_cannot_travel_is_told_by_key(here: Path, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write_package(config(**changes), tmp_path)
    assert any(message in line for line in caught.value.lines), caught.value.lines


def test_too_much_is_refused_before_anything_is_copied(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", 100)
    target = tmp_path / "package"
    target.mkdir()
    with pytest.raises(ValueError, match="put them on storage that the cluster shares"):
        write_package(config(), target)
    assert not list(target.iterdir())


SECRETS = [
    ".git/config", ".git/objects/ab/cd", ".env", ".env.local", ".netrc", ".aws/credentials", ".ssh/id_rsa", "id_rsa",
    ".kube/config", "server.pem", "kube.json", "service-account.json", "wandb/settings", ".venv/lib/x.py",
    "__pycache__/x.pyc", "notes.txt", "README.md", "opt.pt", "args.bin", ".gitignore", "runs/a/config.json",
]  # fmt: skip
MODEL = [
    "config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "additional_chat_templates/tools.jinja",
]  # fmt: skip


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"of {name}")


def travel(tmp_path: Path, settings: SweepConfig) -> tuple[dict[str, str], list[str]]:
    """Path in the package -> content, and what was said."""
    travels = tmp_path / "package"
    travels.mkdir()
    notes = write_package(settings, travels)
    files = {str(path.relative_to(travels)): path.read_text() for path in travels.rglob("*") if path.is_file()}
    assert not any(path.is_symlink() for path in travels.rglob("*"))
    return files, notes


def test_of_a_model_folder_its_own_files_travel_and_all_others_stay_and_are_told(here: Path, tmp_path: Path) -> None:
    fill(here / "base", MODEL + SECRETS)
    files, (note,) = travel(tmp_path, config())
    assert sorted(name for name in files if name.startswith("base/")) == sorted(f"base/{name}" for name in MODEL)
    assert note.startswith(f"base: {len(SECRETS)} files are not sent")
    assert ".env" in note and ".git/ (2 files)" in note


def test_a_link_in_a_model_folder_carries_nothing_else(here: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "config.json").write_text("hunter2")
    (tmp_path / "store").mkdir()
    for name in ("model.safetensors", "shard-7.safetensors"):
        (tmp_path / "store" / name).write_text(f"of {name}")
    base = here / "base"
    fill(base, ["config.json"])
    (base / ".env").write_text("hunter2")
    (base / "vocab.txt").symlink_to(secret)
    (base / "tokenizer.json").symlink_to(".env")
    (base / "merges.txt").symlink_to("/nowhere")
    (base / "additional_chat_templates").symlink_to(tmp_path / "keys")
    (base / "more").symlink_to(tmp_path)
    (base / "model.safetensors").symlink_to(tmp_path / "store" / "model.safetensors")
    (base / "model-00001-of-00001.safetensors").symlink_to(tmp_path / "store" / "shard-7.safetensors")
    files, (note,) = travel(tmp_path, config())
    assert "hunter2" not in files.values()
    assert files["base/model.safetensors"] == "of model.safetensors"  # the same file under another roof
    assert files["base/model-00001-of-00001.safetensors"] == "of shard-7.safetensors"
    assert note.startswith("base: 6 files are not sent")


def test_a_snapshot_of_the_hub_s_cache_travels_whole(here: Path, tmp_path: Path) -> None:
    snapshot = here / "hub" / "models--o--m" / "snapshots" / "abc"
    blobs = snapshot.parents[1] / "blobs"
    fill(blobs, [str(number) for number in range(len(MODEL))])
    for number, name in enumerate(MODEL):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blobs / str(number))
    (here / "linked").symlink_to(snapshot)
    for path in ("hub/models--o--m/snapshots/abc", "linked"):
        for old in (tmp_path / "package").glob("*"):
            old.rename(tmp_path / f"old-{old.name}")
        (tmp_path / "package").exists() and (tmp_path / "package").rmdir()
        files, notes = travel(tmp_path, config(model={"path": path}))
        expected = {f"{path}/{name}": f"of {number}" for number, name in enumerate(MODEL)}
        assert {name: text for name, text in files.items() if name.startswith(path)} == expected and notes == []


def test_of_a_data_set_folder_secrets_and_hidden_files_stay(here: Path, tmp_path: Path) -> None:
    rows = ["train.parquet", "sub/part.jsonl.gz", "README.md", "dataset_infos.json"]
    stay = [".env", ".git/config", "credentials.json", "client_secret.json", "id_rsa", "x.pem", "load.py", "a.sqlite"]
    fill(here / "set", rows + stay)
    domains = {"a": {"hub": {"path": "set"}}, "b": {"train": "data/a.jsonl"}}
    files, (note,) = travel(tmp_path, config(domains=domains, mixing={"type": "uniform"}))
    assert sorted(name for name in files if name.startswith("set/")) == sorted(f"set/{name}" for name in rows)
    assert note.startswith(f"set: {len(stay)} files are not sent")


@pytest.mark.parametrize("path", [".", "./", "..", "../project", "base/..", "here", "/", "~", "../.."])
def test_a_place_that_holds_more_than_a_model_is_refused(
    here: Path, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (here / "here").symlink_to(here)
    for folder in (here, here.parent, tmp_path / "home"):
        (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        write_package(config(model={"path": str(Path(path).expanduser())}), tmp_path / "package")
    (line,) = caught.value.lines
    assert line.startswith("model.path: ") and "would be sent with the job" in line


def test_a_folder_that_is_no_model_is_refused(here: Path, tmp_path: Path) -> None:
    fill(here / "other", ["notes.txt", ".env"])
    with pytest.raises(ConfigError, match=r"model\.path: other has no config\.json"):
        write_package(config(model={"path": "other"}), tmp_path)


def test_files_of_a_pattern_and_names_of_any_letters_travel(here: Path, tmp_path: Path) -> None:
    fill(here / "my data", ["été 1.jsonl", "été 2.jsonl", "other.csv"])
    domains = {"a": {"train": "my data/été *.jsonl"}, "b": {"train": "my data/été 1.jsonl"}}
    files, _ = travel(tmp_path, config(domains=domains, mixing={"type": "uniform"}))
    assert {name for name in files if name.startswith("my data")} == {"my data/été 1.jsonl", "my data/été 2.jsonl"}
    assert "my data/été *.jsonl" in files["config.yaml"]


def test_folders_and_patterns_travel_with_the_files_that_they_name(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("many/1.jsonl", "many/deep/2.csv", "many/.env", "many/README.md", "../beside/c.jsonl", "odd[1].jsonl"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("{}")
    for name in ("state.json", "dataset_info.json", "data.arrow", "cache-1.arrow"):
        (here / "saved").mkdir(exist_ok=True)
        (here / "saved" / name).write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    travels = tmp_path / "package"
    travels.mkdir()
    domains = {
        "a": {"train": ["many", "odd[1].jsonl"], "eval": "data/a-*.jsonl"},
        "b": {"train": ["../beside/*", "saved", "/shared/*.jsonl"]},
    }
    named = config(domains=domains, model={"path": "base"})
    before = {path: find_files(path).files for path in named.domains["a"].train + named.domains["b"].train[:2]}
    write_package(named, travels)
    names = {str(path.relative_to(travels)) for path in travels.rglob("*") if path.is_file()}
    assert names - {"base/config.json", "config.yaml", "ref.json"} == {
        "many/1.jsonl", "many/deep/2.csv", "odd[1].jsonl", "data/a-eval.jsonl", "up/beside/b.jsonl",
        "up/beside/c.jsonl", "saved/state.json", "saved/dataset_info.json", "saved/data.arrow",
    }  # fmt: skip
    monkeypatch.chdir(travels)
    there = load_config(travels / "config.yaml", check_files=False).domains
    assert there["b"].train[2] == Path("/shared/*.jsonl")
    after = [find_files(path).files for path in there["a"].train + there["b"].train[:2]]
    assert [[file.name for file in files] for files in after] == [[f.name for f in files] for files in before.values()]


def test_a_pattern_without_a_match_is_told_by_key(here: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_package(config(domains={"a": {"train": "none/*.jsonl"}, "b": {"train": "data/a.jsonl"}}), tmp_path)
    (line,) = caught.value.lines
    assert line.startswith(f"domains.a.train[0]: none/*.jsonl: nothing matches this pattern (looked in {here})")
    assert line.endswith("; correct it; if it is on the cluster, give its absolute path there")
