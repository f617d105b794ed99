"""The page of all keys is the configuration's own."""

from pathlib import Path

from orchestrator.config.page import config_page
from orchestrator.config.sweep import SweepConfig

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_in_the_documentation_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == config_page(SweepConfig.model_json_schema()), "raymix schema --markdown > docs/configuration.md"


def test_every_key_stands_there_once_with_what_it_means() -> None:
    schema = SweepConfig.model_json_schema()
    page = config_page(schema)
    groups = [schema, *schema["$defs"].values()]
    for group in groups:
        for key, value in group["properties"].items():
            row = " ".join(value.get("description", "").split()).replace("|", "\\|")
            assert f"| `{key}` | " in page and row in page, key
    assert page.count("\n## ") == len(groups)
    assert "| `sigma` | number > 0 | `0.5` | Magnitude of an adjustment. |" in page
