"""Findings about the data as sentences with numbers: what was left out, cut, repeated or leaked.

The counts come from token stores, including overlaps: manifests and hashes are read, no tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import date

from orchestrator.prepare.token_stores import DomainStores, training_stores
from orchestrator.runs.records import DataRecord, DomainCounts, Finding, Severity, StoreCounts
from workers.config.data import DataConfig
from workers.data.overlap import find_shared, find_within
from workers.data.report import Report
from workers.data.store import TokenStore

_MAX_NAMED = 5
_FEW = 0.01  # repeats below this fraction are not worth a warning

Said = tuple[str, Severity, str]
"""Kind, severity and sentence of a finding."""


def look_at_data(data: DataConfig, stores: Mapping[str, DomainStores], template_day: date | None) -> DataRecord:
    """Counts and findings of every domain's rows; `template_day` is the date that the chat template writes, if any."""
    counts = _count_domains(stores)
    findings = [
        Finding(severity=severity, kind=kind, where=f"domains.{name}", message=message)
        for name in counts
        for kind, severity, message in _of_domain(name, counts, data)
    ]
    findings += _same_files(stores)
    findings += [_of_stream(name, domain.train) for name, domain in stores.items() if domain.stream and domain.train]
    if template_day is not None:
        message = (
            f"the chat template writes the current date; in the rows it is always {template_day.isoformat()}, the day "
            "when the first token store was built, so that the rows do not change"
        )
        findings.append(Finding(severity="note", kind="date", where="model.chat_template", message=message))
    return DataRecord(domains=counts, findings=findings)


def _count_domains(stores: Mapping[str, DomainStores]) -> dict[str, DomainCounts]:
    trained = training_stores(stores)
    leaks = find_within(
        {name: domain.eval.prompts for name, domain in stores.items()},
        {name: store.prompts for name, store in trained.items()},
    )
    shared = find_shared({name: store.distinct_examples for name, store in trained.items()})
    counts = {}
    for name, domain in stores.items():
        of_eval = Report(**domain.eval.manifest["report"])
        of_train = Report(**domain.train.manifest["report"]) if domain.train else Report()
        has_eval_files = any(source.side == "eval" for source in domain.sources)
        if not has_eval_files and domain.train is None:  # evaluated on rows of its training files
            of_train, of_eval = of_eval, of_train
        counts[name] = DomainCounts(
            train=_count_store(domain.train) if domain.train else None,
            eval=_count_store(domain.eval),
            train_files=of_train,
            eval_files=of_eval,
            num_leaked_prompts=leaks[name].num_any,
            leaked_prompts=leaks[name].by_domain,
            num_shared_examples=shared[name].num_any if name in shared else 0,
            shared_examples=shared[name].by_domain if name in shared else {},
        )
    return counts


def _of_stream(name: str, first: TokenStore) -> Finding:
    num_rows = Report(**first.manifest["report"]).num_rows
    message = (
        f"streamed: counts and findings are of its first {num_rows:,} rows; the others are prepared while training "
        "goes on"
    )
    return Finding(severity="note", kind="streaming", where=f"domains.{name}", message=message)


def _count_store(store: TokenStore) -> StoreCounts:
    return StoreCounts(
        num_examples=store.num_examples,
        num_distinct=store.manifest["num_distinct_examples"],
        num_prompts=store.manifest["num_prompts"],
        num_rows=store.num_rows,
        num_tokens=store.num_tokens,
        num_targets=store.num_loss_tokens,
    )


def _of_domain(name: str, counts: Mapping[str, DomainCounts], data: DataConfig) -> Iterator[Said]:
    domain = counts[name]
    yield from _of_report(domain.train_files, "rows", data)
    yield from _of_report(domain.eval_files, "evaluation rows", data)
    if (num := domain.train_files.num_not_chosen) and domain.train:
        of = num + domain.train.num_examples
        yield "not_chosen", "note", f"{num:,} of {of:,} training examples are left out by `fraction` or `count`"
    unit = "examples" if data.too_long == "split" and domain.report.num_too_long else "rows"
    if domain.train:
        yield from _repeats(domain.train, unit)
    yield from _repeats(domain.eval, f"held-out {unit}")
    yield from _leaks(name, domain)
    yield from _shared(name, domain, list(counts))


def _of_report(report: Report, rows: str, data: DataConfig) -> Iterator[Said]:
    of_rows = f"of {report.num_rows:,} {rows}"
    if report.num_bad_rows:
        kinds: Counter[str] = Counter()
        for count in report.bad_rows:
            kinds[count.kind] += count.num_rows
        listed = ", ".join(f"{kind} ({num:,})" for kind, num in kinds.most_common())
        first = report.bad_row_cases[0]
        message = f"{report.num_bad_rows:,} {of_rows} cannot be used: {listed}; first {first.file}:{first.line}"
        yield "bad_rows", "warning", f"{message}: {first.reason}"
    if report.num_excluded:
        yield "excluded", "note", f"{report.num_excluded:,} {of_rows} {_be(report.num_excluded)} left out by `exclude`"
    if report.num_too_long:
        yield "too_long", "warning", f"{report.num_too_long:,} {of_rows} {_too_long(report, data)}"
    for word, num in report.dropped.items():
        message = f"{word} {'are' if word.endswith('s') else 'is'} dropped by the template in {_count(num, rows)}"
        yield "dropped", "warning", message


def _too_long(report: Report, data: DataConfig) -> str:
    num = report.num_too_long
    done = {"drop": "left out", "truncate": "cut to it", "split": "split at it"}[data.too_long]
    lost = f"{_count(report.num_tokens_cut, 'tokens')} lost, {report.num_targets_cut:,} of them targets"
    message = (
        f"{_be(num)} longer than data.max_length {data.max_length:,} and {done} "
        f"(data.too_long: {data.too_long}): {lost}"
    )
    if report.num_without_target:
        left = report.num_without_target
        message += f"; {left:,} of them {'has' if left == 1 else 'have'} no target left and {_be(left)} left out"
    return message


def _repeats(store: StoreCounts, rows: str) -> Iterator[Said]:
    if num := store.num_repeats:
        severity: Severity = "note" if num < _FEW * store.num_examples else "warning"
        verb = "repeats" if num == 1 else "repeat"
        message = f"{num:,} of {store.num_examples:,} {rows} {verb} another ({store.num_distinct:,} distinct)"
        yield "duplicates", severity, message


def _leaks(name: str, domain: DomainCounts) -> Iterator[Said]:
    places = list(domain.leaked_prompts.items())
    for place, num in places[:_MAX_NAMED]:
        where = "the training data" if place == name else f"the training data of domain {place!r}"
        message = f"{num:,} of {domain.eval.num_prompts:,} held-out prompts {_be(num)} in {where}"
        yield "leak", "warning", message
    if len(places) > _MAX_NAMED:
        message = f"{domain.num_leaked_prompts:,} held-out prompts are in training data in total, including "
        yield "leak", "warning", f"{message}{len(places) - _MAX_NAMED:,} more domains"


def _shared(name: str, domain: DomainCounts, order: list[str]) -> Iterator[Said]:
    """Each pair of domains is reported once, at the first of the two."""
    later = [(other, num) for other, num in domain.shared_examples.items() if order.index(other) > order.index(name)]
    for other, num in later[:_MAX_NAMED]:
        verb = "is" if num == 1 else "are"
        yield "shared", "warning", f"{_count(num, 'training examples')} {verb} also in domain {other!r}"
    if len(later) > _MAX_NAMED:
        yield "shared", "warning", f"training examples are also in {len(later) - _MAX_NAMED:,} more domains"


def _same_files(stores: Mapping[str, DomainStores]) -> Iterator[Finding]:
    places: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for domain, of_domain in stores.items():
        for source in of_domain.sources:
            places[source.digest].append((domain, source.side, source.name))
    for same in places.values():
        if len(same) < 2:
            continue
        first = same[0][0]
        is_one_domain = all(domain == first for domain, _, _ in same)
        named = [
            f"{name} ({side})" if is_one_domain else f"{name} (domain {domain!r}, {side})"
            for domain, side, name in same[:_MAX_NAMED]
        ]
        more = f" and {len(same) - _MAX_NAMED:,} more" if len(same) > _MAX_NAMED else ""
        times = "twice" if len(same) == 2 else f"{len(same):,} times"
        message = f"the same file {times}: {', '.join(named)}{more}"
        severity: Severity = "note" if all(side == "eval" for _, side, _ in same) else "warning"
        yield Finding(severity=severity, kind="same_file", where=f"domains.{first}", message=message)


def _count(number: int, things: str) -> str:
    return f"{number:,} {things.removesuffix('s') if number == 1 else things}"


def _be(number: int) -> str:
    return "is" if number == 1 else "are"
