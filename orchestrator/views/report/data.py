"""What became of the rows of a run's data, by domain and reason: the table of data.json."""

from orchestrator.runs.data_record import DomainCounts
from orchestrator.runs.folder import RunFolder
from orchestrator.views.report.figures import Section
from orchestrator.views.report.tables import Rows

_HEADINGS = [
    "Domain",
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
]


def data_sections(run: RunFolder) -> list[Section]:
    """A section with the table; none where the run keeps no counts."""
    if run.data is None:
        return []
    rows = [_row(name, counts) for name, counts in run.data.domains.items()]
    kinds = ["worse" if counts.num_leaked_prompts else "same" for counts in run.data.domains.values()]
    note = (
        "Rows of all files that were read for a domain, and what left them on the way. Too long: longer than "
        "data.max_length, whatever became of them. Repeats: trained examples that equal another of the domain. Of "
        "these in training data: held-out prompts that this or another domain trains on. The events below say the same "
        "in sentences."
    )
    return [Section("Data", note, table=Rows(_HEADINGS, rows, kinds))]


def _row(name: str, counts: DomainCounts) -> list[str]:
    report = counts.report
    dropped = ", ".join(f"{word} {num:,}" for word, num in report.dropped.items())
    return [
        name,
        "" if counts.train else "only measured",
        *(
            f"{number:,}"
            for number in (
                report.num_rows,
                report.num_bad_rows,
                report.num_excluded,
                report.num_not_chosen,
                report.num_too_long,
                report.num_tokens_cut,
                report.num_targets_cut,
            )
        ),
        dropped or "0",
        f"{counts.train.num_examples:,}" if counts.train else "-",
        f"{counts.train.num_repeats:,}" if counts.train else "-",
        f"{counts.eval.num_prompts:,}",
        f"{counts.num_leaked_prompts:,}",
    ]
