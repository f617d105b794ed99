"""What the plan warns of."""

from orchestrator.check import context_warning


def test_rows_longer_than_the_model_can_read_are_warned_of() -> None:
    (line,) = context_warning(1024, 512)
    assert "1,024 tokens in a row" in line.plain and "made for 512" in line.plain
    assert context_warning(512, 512) == [] and context_warning(8192, None) == []
