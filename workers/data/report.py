"""The outcome of reading a source's rows: counts by file and kind of reason, and the first cases verbatim."""

from collections import Counter
from typing import Self

from pydantic import Field

from workers.config.data import DataConfig
from workers.data.files import BadRow
from workers.settings import Settings

MAX_BAD_ROW_CASES = 20
_CASES_IN_MESSAGE = 5


class BadRowCount(Settings):
    """How often a file's rows were refused for one kind of reason."""

    file: str
    kind: str
    num_rows: int


class Report(Settings):
    """The outcome of reading rows."""

    num_rows: int = 0
    """Rows read, good and bad."""
    num_bad_rows: int = 0
    bad_rows: tuple[BadRowCount, ...] = ()
    """Number of bad rows by file and kind of reason."""
    bad_row_cases: tuple[BadRow, ...] = ()
    """The first bad rows."""
    num_too_long: int = 0
    """Examples of more than max_length tokens, whether kept in part or lost."""
    num_too_long_lost: int = 0
    """Those of which nothing is left."""
    num_without_target: int = 0
    """Those of which nothing is left because no piece contained a target."""
    num_tokens_cut: int = 0
    """Tokens removed from examples that were too long."""
    num_targets_cut: int = 0
    """Targets among them, including those at the head of a piece, which nothing predicts."""
    num_excluded: int = 0
    """Good rows that `exclude` left out."""
    num_not_chosen: int = 0
    """Training examples that `fraction` or `count` left out."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Rows of which the chat template omits something, by what it omits."""

    @classmethod
    def merged(cls, reports: list[Self]) -> Self:
        """The sum of reports, with the first cases in the order of files and lines."""
        counts: Counter[tuple[str, str]] = Counter()
        dropped: Counter[str] = Counter()
        for report in reports:
            counts.update({(count.file, count.kind): count.num_rows for count in report.bad_rows})
            dropped.update(report.dropped)
        cases = [case for report in reports for case in report.bad_row_cases]
        order = {file: index for index, file in enumerate(dict.fromkeys(case.file for case in cases))}
        cases.sort(key=lambda case: (order[case.file], case.line))
        return cls(
            bad_rows=tuple(BadRowCount(file=file, kind=kind, num_rows=n) for (file, kind), n in counts.items()),
            bad_row_cases=tuple(cases[:MAX_BAD_ROW_CASES]),
            dropped=dict(dropped),
            **{name: sum(getattr(report, name) for report in reports) for name in _SUMS},
        )

    @classmethod
    def of_rows(cls, num_good: int, bad_rows: list[BadRow]) -> Self:
        """The report on a batch of rows."""
        counts = Counter((bad.file, bad.kind) for bad in bad_rows)
        return cls(
            num_rows=num_good + len(bad_rows),
            num_bad_rows=len(bad_rows),
            bad_rows=tuple(BadRowCount(file=file, kind=kind, num_rows=n) for (file, kind), n in counts.items()),
            bad_row_cases=tuple(bad_rows[:MAX_BAD_ROW_CASES]),
        )


_SUMS = [name for name in Report.model_fields if name.startswith("num_")]


def check_bad_rows(domain: str, data: DataConfig, report: Report) -> None:
    """Refuse a domain with more bad rows than `data` allows."""
    if report.num_bad_rows == 0:
        return
    cases = report.bad_row_cases
    if data.bad_rows == "fail":
        raise ValueError(f"domain {domain!r}: {_show(cases[0])}. Fix the row, or set data.bad_rows: skip")
    fraction = report.num_bad_rows / report.num_rows
    if fraction > data.max_bad_fraction:
        kinds = "; ".join(f"{count.file}: {count.kind}: {count.num_rows:,}" for count in report.bad_rows)
        first = "\n  ".join(_show(case) for case in cases[:_CASES_IN_MESSAGE])
        raise ValueError(
            f"domain {domain!r}: {report.num_bad_rows:,} of {report.num_rows:,} rows cannot be used, a fraction of "
            f"{fraction:.4f}; data.max_bad_fraction allows {data.max_bad_fraction}. Fix the rows, or raise it.\n"
            f"  By file and reason: {kinds}\n  {first}"
        )


def _show(case: BadRow) -> str:
    return f"{case.file}:{case.line}: {case.reason}"
