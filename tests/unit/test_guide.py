"""The guide tells the truth: its code runs, its links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from workers.config.data import DomainConfig
from workers.data.files import Shard
from workers.data.formats.example import Example, ExcludedRow
from workers.data.formats.layouts import FORMATS
from workers.data.sources import plan_sources, read_examples

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_guide_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_rows_of_the_guide_are_read_as_it_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "rows.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    answers = []
    for number, line in enumerate(block.splitlines()):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(line)
        (row,) = read_examples(plan_sources("d", DomainConfig(train=[path]), "train")[0], Shard())
        assert isinstance(row, Example), row
        answers.append(row.messages[-1]["content"] if row.messages else row.text)
    assert answers == ["56", "The Rhine.", "Take a coat.", "Oslo.", "Hello!", "4", "A document, learned whole."]
    names = {name: (*layout.required, *layout.optional) for name, layout in FORMATS.items()}
    for name, fields in names.items():
        (listed,) = re.findall(rf"^\| `{name}` \|(.*)\|", page, re.MULTILINE)
        assert [field for field in fields if f"`{field}`" not in listed] in ([], ["role", "content"], ["from", "value"])


def test_the_advice_of_the_guide_leaves_out_the_answers_that_are_marked_as_bad(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "rows.md").read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "q", "completion": "a", "label": {label}}}\n' for label in ("true", "false")))
    config = DomainConfig(train=[path], eval=[path], **yaml.safe_load(block))
    for split in ("train", "eval"):
        rows = list(read_examples(plan_sources("d", config, split)[0], Shard()))
        assert [type(row) for row in rows] == [Example, ExcludedRow]
