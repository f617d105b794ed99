"""The guide tells the truth: its code runs, its links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.actor import DomainSize
from workers.contracts import DomainFeedback

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_guide_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_algorithm_of_the_guide_is_one() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    module: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], module)
    domains = [DomainSize("a", 1, 1), DomainSize("b", 1, 1)]
    algorithm = module["Loss"](module["LossConfig"](), domains)
    assert algorithm.initial_weights() == {"a": 0.5, "b": 0.5}
    losses = {"a": 30.0, "b": 10.0}
    feedback = DomainFeedback(
        run_id="r", attempt=1, step=0, weights_version=0, loss_sum_nats=losses, num_tokens={"a": 10, "b": 10}
    )
    assert algorithm.observe(feedback) == {"a": 0.75, "b": 0.25}
    assert algorithm.state_dict() == {} and algorithm.metrics() == {}
