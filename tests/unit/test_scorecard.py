"""The scorecard names tests and places of code that are there."""

import pytest

from tests.scorecard import ROOT, ROWS


@pytest.mark.parametrize("name", ROWS)
def test_a_row_names_what_is_there(name: str) -> None:
    row = ROWS[name]
    for test in [*row.tests, row.fault.test]:
        file, _, function = test.partition("::")
        assert f"def {function}(" in (ROOT / "tests" / file).read_text() or not function, test
    assert (ROOT / row.fault.file).read_text().count(row.fault.right) == 1, row.fault
