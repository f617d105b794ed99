"""The table of data.json: rows used and left out, by domain and reason."""

from orchestrator.runs.data_record import DomainCounts
from orchestrator.runs.folder import RunFolder
from orchestrator.views.format import format_count
from orchestrator.views.report.figures import Section
from orchestrator.views.table import Cell, ResultTable, Row, columns_of

_HEADINGS = (
    "Rows read",
    "Cannot be used",
    "Excluded",
    "Not chosen",
    "Too long",
    "Tokens cut",
    "Targets cut",
    "Dropped by the template",
    "Trained examples",
    "Repeats",
    "Held-out prompts",
    "Of these in training data",
)
_NOTE = (
    "All rows read for a domain, and the rows and tokens that were left out. Too long: longer than "
    "data.max_length, however they were handled. Repeats: trained examples equal to another in the domain. Of "
    "these in training data: held-out prompts that this or another domain trains on. The events below report the "
    "same in sentences."
)


def data_sections(run: RunFolder) -> list[Section]:
    if run.data is None:
        return []
    domains = run.data.domains
    rows = [Row(name, "" if counts.train else "only measured") for name, counts in domains.items()]
    table = ResultTable("Domain", rows, columns_of(_HEADINGS, map(_cells, domains.values())))
    return [Section("Data", _NOTE, table=table)]


def _cells(counts: DomainCounts) -> list[Cell | str]:
    report, train, num_leaked = counts.report, counts.train, counts.num_leaked_prompts
    rows = (report.num_rows, report.num_bad_rows, report.num_excluded, report.num_not_chosen, report.num_too_long)
    examples = (train.num_examples if train else None, train.num_repeats if train else None, counts.eval.num_prompts)
    return [
        *map(format_count, (*rows, report.num_tokens_cut, report.num_targets_cut)),
        ", ".join(f"{word} {num:,}" for word, num in report.dropped.items()) or "0",
        *map(format_count, examples),
        Cell(format_count(num_leaked), style="worse" if num_leaked else "same"),
    ]
