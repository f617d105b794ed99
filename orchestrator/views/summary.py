"""What came of a run: its verdict in sentences, and its domains in a table.

The same in terminal, report, dashboard and comparisons. Losses are held-out losses in nats per token.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.runs.folder import RunFolder, read_run
from orchestrator.runs.loss_errors import LossErrors, RunErrors, run_errors
from orchestrator.runs.records import DomainSummary, RunSummary, Verdict
from orchestrator.runs.verdict import has_broken_off
from orchestrator.views.format import (
    ERROR_NOTE,
    NOTHING,
    color_by_name,
    format_epochs,
    format_error,
    format_loss,
    format_share,
    printable,
)
from orchestrator.views.table import Cell, ResultTable, Row, change_cell, columns_of
from workers.storage.addresses import shown, uri_of

HARMFUL: frozenset[Verdict] = frozenset({"worse_than_base", "ended_worse", "diverged"})
IN_A_WORD: dict[Verdict, str] = {
    "improved": "improved",
    "mixed": "mixed",
    "ended_worse": "ended worse",
    "worse_than_base": "worse than base",
    "unchanged": "unchanged",
    "diverged": "diverged",
    "not_measured": "not measured",
}
MAX_DOMAINS_NAMED = 5
_HEADINGS = ("Share", "Epochs", "Loss, base", "best", "end", "Change")
_LOSSES = "Losses in nats per loss token on held-out rows, assistant tokens only; change is end minus base. "
_ERRORS = f"{ERROR_NOTE}; a change is paired over the examples, and coloured if it is more than two standard errors."
_STYLES = {"improved": "green", "mixed": "yellow", "unchanged": "yellow"} | dict.fromkeys(HARMFUL, "bold red")


def in_a_word(verdict: Verdict | None) -> str:
    """The verdict in as few words as possible; - in files of older versions."""
    return "-" if verdict is None else IN_A_WORD[verdict]


def verdict_lines(run: RunFolder, result: RunSummary) -> list[str]:
    """The outcome of the run, verdict first, one or two sentences per line; none for files of older versions.

    For a run that has not ended: only what the user should know already.
    """
    if result.verdict is None or (run.summary is None and result.verdict == "not_measured"):
        return []
    if run.summary is None and not has_broken_off(run.events):
        return _so_far(run, result)
    lines = [verdict_sentence(run, result) + _folders(run, result), *_causes(run, result), *_divergence(result)]
    return [*lines, *_worse(result), *_past_lowest(result)]


def base_of(result: RunSummary) -> str:
    """The model that the run started from, with which it is compared."""
    return "the base model" if result.started_from is None else f"the model of {PurePath(result.started_from).name}"


def no_best_reason(run: RunFolder, result: RunSummary) -> str:
    """Why a finished run has no `best/`."""
    if run.setting("evaluation", "best") is None:
        return "the run was set to keep none (evaluation.best is null)"
    if result.best is not None and result.best.step == 0:
        return (
            f"no evaluated step was better than {base_of(result)} ({_judged(result)} {_loss(result.best.loss_nats)}), "
            "so none was kept"
        )
    if result.best is None:
        return "no evaluation of the run had finite losses"
    return "it was removed, or the run keeps no models, like the runs of a search"


def _so_far(run: RunFolder, result: RunSummary) -> list[str]:
    """Sentences about a run that has not finished."""
    at = f"So far, at the evaluation of step {run.feedback[-1].step:,}," if run.feedback else "So far,"
    worse = _worse(result, "is", "are")
    if result.verdict not in HARMFUL:
        return [f"{at} {worse[0]}"] if worse else []
    start, now = _judged_losses(result)
    told = f"{at} the model gets worse: the {_judged(result)} was {_loss(start)} at the start and is {_loss(now)} now."
    return [told, *_causes(run, result), *_divergence(result), *worse]


def verdict_sentence(run: RunFolder, result: RunSummary) -> str:
    """The verdict with its numbers, for a reader who has the model but not the run folder."""
    base, judged = base_of(result), _judged(result)
    start, end = _judged_losses(result)
    match result.verdict:
        case "improved":
            return f"Improved: the {judged} fell {_from_to(start, end)}, and no domain ends worse than {base}."
        case "mixed":
            return f"Mixed: the {judged} fell {_from_to(start, end)}, but not every domain gained."
        case "unchanged":
            return f"Unchanged: no domain ends measurably different from {base}."
        case "worse_than_base":
            was = f"at no evaluation was the {judged} below its initial {_loss(start)}; it ends at {_loss(end)}"
            return f"Worse than {base}: {was}."
        case "ended_worse":
            assert result.best is not None
            was = f"{_loss(start)} at the start, {_loss(result.best.loss_nats)} at step {result.best.step:,}"
            return f"Ended worse than {base}: the {judged} was {was}, {_loss(end)} at the end."
        case "diverged":
            return f"Diverged: {_why_diverged(run, result)}"
        case _:
            return f"Not measured: there is no evaluation of {base}, or none after it to compare with."


def _why_diverged(run: RunFolder, result: RunSummary) -> str:
    if run.summary is None:
        return next(event.message for event in reversed(run.events) if event.kind == "diverged")
    start, end = _judged_losses(result)
    return f"the {_judged(result)} was {_loss(start)} at the start and is {_loss(end)} at the end."


def _folders(run: RunFolder, result: RunSummary) -> str:
    """What the verdict means for the run's model folders; begins with a space."""
    best = result.best
    if result.verdict == "worse_than_base":
        return f" So {'' if best is None else 'there is no best/, and '}model/ is worse than {base_of(result)}."
    if result.verdict == "ended_worse" and run.setting("evaluation", "best") is not None:
        return " Use best/, not model/."
    if result.verdict == "diverged" and run.summary is not None and best is not None:
        return f" The model in best/ is from step {best.step:,}."
    if result.verdict in ("improved", "mixed") and best is not None and (run.path / "best").is_dir():
        _, end = _judged_losses(result)
        if end is not None and best.loss_nats is not None and best.loss_nats < end:
            return f" It was lowest at step {best.step:,}, {_loss(best.loss_nats)}; that model is in best/."
    return ""


def _causes(run: RunFolder, result: RunSummary) -> list[str]:
    rate = run.setting("training", "learning_rate")
    given = "" if rate is None else f" (training.learning_rate is {rate:g})"
    if result.verdict == "unchanged":
        return [f"Usual causes, most likely first: a learning rate that is too low{given}; too few steps."]
    if result.verdict == "mixed":
        return [
            f"Usual causes, most likely first: a learning rate that is too high{given}; domains that are measured "
            "but hardly trained on; many epochs over few rows."
        ]
    if result.verdict not in HARMFUL:
        return []
    return [
        f"Usual causes, most likely first: a learning rate that is too high{given}; held-out rows that differ from "
        "the training rows in content or format; a chat template that the base model does not know; many epochs "
        "over few rows."
    ]


def _divergence(result: RunSummary) -> list[str]:
    lines = []
    if (rise := result.divergence) is not None:
        lines.append(
            f"The training loss rose and did not recover: {_loss(rise.loss_nats_lowest)} around step {rise.step:,}, "
            f"{_loss(rise.loss_nats_end)} at the end."
        )
    if result.not_finite:
        lines.append(f"Not finite at the last evaluation: the loss of {_listed(result.not_finite)}.")
    return lines


def _worse(result: RunSummary, one: str = "ends", several: str = "end") -> list[str]:
    worse = {name: domain for name, domain in result.domains.items() if domain.is_worse_than_base}
    if not worse:
        return []
    num_all, base = len(result.domains), base_of(result)
    if len(worse) == num_all > 1:
        every = "Both domains" if num_all == 2 else f"All {num_all} domains"
        return [f"{every} {several} worse than {base}."]
    told = [
        f"{name} {_loss(domain.loss_nats_start)} to {_loss(domain.loss_nats_end)}"
        for name, domain in sorted(worse.items(), key=lambda item: -_rise(item[1], item[1].loss_nats_start))
    ]
    verb = one if len(worse) == 1 else several
    return [f"{len(worse)} of {num_all} domains {verb} worse than {base}: {_listed(told)}."]


def _past_lowest(result: RunSummary) -> list[str]:
    past = {name: domain for name, domain in result.domains.items() if domain.is_past_lowest}
    if not past:
        return []
    told = [
        f"{name} {_loss(domain.loss_nats_lowest)} at step {domain.lowest_step:,}{_passes(domain.lowest_epochs)}, "
        f"{_loss(domain.loss_nats_end)} at the end{_passes(domain.epochs)}"
        for name, domain in sorted(past.items(), key=lambda item: -_rise(item[1], item[1].loss_nats_lowest))
    ]
    whose = "its" if len(past) == 1 else "their"
    cure = f"A smaller share{'' if len(past) == 1 else ' for each'}, fewer steps or more rows help."
    return [f"Past {whose} own lowest loss, a sign of over-fitting: {_listed(told, '; ')}. {cure}"]


def _judged(result: RunSummary) -> str:
    """The name of the loss that decides the verdict."""
    criterion = "mean" if result.best is None else result.best.criterion
    return f"{criterion} loss" if criterion in ("mean", "worst") else f"loss of {criterion}"


def _judged_losses(result: RunSummary) -> tuple[float | None, float | None]:
    """The loss that decides the verdict, at the start and at the end."""
    criterion = "mean" if result.best is None else result.best.criterion
    if criterion in result.domains:
        domain = result.domains[criterion]
        return domain.loss_nats_start, domain.loss_nats_end
    course = result.worst_loss_nats if criterion == "worst" else result.mean_loss_nats
    return course.start, course.end


def _rise(domain: DomainSummary, since: float | None) -> float:
    return (domain.loss_nats_end or 0.0) - (since or 0.0)


def _loss(loss_nats: float | None) -> str:
    return "not finite" if loss_nats is None else f"{loss_nats:.3f}"


def _from_to(start: float | None, end: float | None) -> str:
    return f"from {_loss(start)} to {_loss(end)}"


def _passes(epochs: float | None) -> str:
    return "" if epochs is None else f" ({epochs:.1f} epochs)"


def _listed(names: Sequence[str], between: str = ", ") -> str:
    left_out = len(names) - MAX_DOMAINS_NAMED
    return between.join(names[:MAX_DOMAINS_NAMED]) + (f"{between}and {left_out} more" if left_out > 0 else "")


def summary_view(run_folder: Path) -> RenderableType:
    run = read_run(run_folder)
    if run.summary is None:
        return Text(f"{run.path}: not finished, no summary.json")
    places = [(label, run.path / part) for label, part in (("model", "model"), ("report", "report.html"))]
    there = [(label, path) for label, path in places if path.exists() or uri_of(path)]  # maybe on another node
    lines = [Text(f"{label:<8}{printable(shown(path))}", overflow="fold") for label, path in there]
    verdict = [Text(printable(line), overflow="fold") for line in verdict_lines(run, run.summary)]
    if verdict and run.summary.verdict is not None:
        verdict[0].stylize(_STYLES.get(run.summary.verdict, ""))
    return Group(domain_table(run, run.summary, run_errors(run)).to_rich(), *verdict, *lines)


def domain_table(run: RunFolder, result: RunSummary, errors: RunErrors) -> ResultTable:
    """A row for each domain of a run: shares, epochs, and losses with their standard errors."""
    colors = color_by_name(run.domains)
    are_known = any(each.end is not None for each in errors.domains.values())
    columns = columns_of(_HEADINGS, (_cells(each, errors.of(name)) for name, each in result.domains.items()))
    return ResultTable(
        "Domain",
        [Row(name, color=colors.get(name, "gray"), part=each.share_final) for name, each in result.domains.items()],
        [replace(column, brief=column.heading.removeprefix("Loss, ")) for column in columns],
        notes=[_LOSSES + _best(result) + (_ERRORS if are_known else "No standard errors were recorded.")],
    )


def _best(result: RunSummary) -> str:
    if result.best is None:
        return ""
    return f"Best is {f'the evaluation at step {result.best.step:,}' if result.best.step else 'the base'}. "


def _cells(domain: DomainSummary, errors: LossErrors) -> list[Cell | str]:
    start, end = domain.loss_nats_start, domain.loss_nats_end
    shares = [format_share(share) for share in (domain.share_initial, domain.share_final)]
    is_measured_only = domain.share_initial is None and domain.share_final is None
    return [
        NOTHING if is_measured_only else Cell(" \u2192 ".join(shares), brief=" -> ".join(shares)),
        format_epochs(domain.epochs),
        Cell(format_loss(start), format_error(errors.start), brief=format_loss(start)),
        format_loss(domain.loss_nats_best),
        Cell(format_loss(end), format_error(errors.end)),
        change_cell(end, start, errors.change.standard_error if errors.change else None),
    ]
