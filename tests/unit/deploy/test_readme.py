"""What the deployment page tells a person to type exists."""

import re
from pathlib import Path

import pytest

from tests.runs import ROOT
from tests.unit.deploy.manifests import DEPLOY, parse_command

PAGES = [DEPLOY / "README.md", ROOT / "docs" / "sizing.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists()
    for file in re.findall(r"\b(?:deploy|benchmarks)/[\w./-]+\w", text):
        assert (ROOT / file).exists()
    for command in re.findall(r"\braymix (?:run|check) [\w/.-]+\.yaml", text):
        assert parse_command(command)["config"].suffix == ".yaml"
    for option in re.findall(r"--build-arg (\w+)=", text):
        assert f"ARG {option}=" in (DEPLOY / "Dockerfile").read_text()
