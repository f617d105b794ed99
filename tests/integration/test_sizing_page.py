"""The sizing page shows what the estimators say today."""

from tests.runs import ROOT


def test_the_table_is_what_the_estimators_give() -> None:
    from benchmarks.sizing_table import table

    page = (ROOT / "docs" / "sizing.md").read_text()
    assert table() in page
