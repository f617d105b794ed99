"""What the tests of the deployment files share: the files, read as they are used, and what the project pins."""

import re
import shlex
import tomllib
from typing import Any

import typer.main
import yaml

from orchestrator.cli.main import app
from tests.runs import ROOT

DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_documents(name: str) -> dict[str, dict[str, Any]]:
    """The documents of a manifest, by kind and name."""
    documents = yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text())
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in documents}


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    (version,) = re.findall(rf"(?m)^{package}==(\S+)$", (ROOT / "constraints.txt").read_text())
    return version


def parse_command(line: str) -> dict[str, Any]:
    """The parameters of a `raymix` command line, as the command line itself reads them; an error if it does not."""
    program, verb, *arguments = shlex.split(line)
    assert program.rpartition("/")[2] == "raymix"
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]  # it is a group
    return command.make_context(verb, arguments).params
