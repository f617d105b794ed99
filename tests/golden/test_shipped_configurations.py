"""Every configuration that is shipped, with all defaults written out: what it did, it does.

Users begin with these files; a default that changes here changes what their copies do.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.config.load import load_config
from tests.golden.recorded import check_recorded

ROOT = Path(__file__).parents[2]
WHY = "Copies of it that users run would do something else."


def _shipped() -> Iterator[tuple[str, str]]:
    """(Where it is, its text): the examples, the one in the README, and the one inside the Kubernetes job."""
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        yield f"examples/{path.name}", path.read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        yield "README.md", block
    for document in yaml.safe_load_all((ROOT / "deploy/kuberay/rayjob.yaml").read_text(encoding="utf-8")):
        for name, text in document.get("data", {}).items():
            yield f"deploy/kuberay/rayjob.yaml, {name}", text


SHIPPED = dict(_shipped())


@pytest.mark.parametrize("name", SHIPPED)
def test_what_it_does(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths stay as they are written, whatever lies in the folder of the checkout
    path = tmp_path / "config.yaml"
    path.write_text(SHIPPED[name], encoding="utf-8")
    config = load_config(path, check_files=False)
    found = config.model_dump(mode="json") | {"order of domains": list(config.domains)}
    check_recorded("configurations", name, found, WHY)


def test_which_there_are() -> None:
    check_recorded("public_names", "configurations", sorted(SHIPPED), "Guides and users link to them.")
