"""Token stores of all domains: one task for each part of a file, then one for each store; cached stores are reused.

The tasks run on Ray if it is running and the files are not small, else one after the other in this process. The driver
loads the tokenizer and passes it to them: to choose a tokenizer class, transformers imports the model's configuration
class and with it torch. So a task neither imports torch nor accesses the hub.
"""

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.nodes import on_this_node
from orchestrator.config.run import RunConfig
from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
from workers.data.chat_template import freeze_date
from workers.data.parts import PartMaker, next_position
from workers.data.preparing import DomainPlan, check_sides, fingerprint_tokenizer, pack_side, plan_domain
from workers.data.reading import Blocks, find_lines
from workers.data.report import Report, check_bad_rows
from workers.data.store import TokenStore, publish
from workers.data.tokenization import ShardTask, Side, TokenShard, tokenize_shard
from workers.model.tokenizer import load_tokenizer
from workers.storage.mirror import fetch_folder, is_published, publish_folder
from workers.training.plan import StreamedRows

if TYPE_CHECKING:
    import ray
    from transformers import PreTrainedTokenizerBase

_SMALL_BYTES = 2**20
"""Of files that are tokenised before a worker of Ray has started."""
_PACKING_SHARE = 0.05
"""Of the time that a domain takes, after its rows are tokens."""
OnProgress = Callable[[float, float, str, int], None]
"""Called with (done, total, domain, rows read): the first two in bytes of its files, or in rows of a hub data set."""


@dataclass(frozen=True)
class UsedSource:
    """A file, or a split of a data set on the hub, from which a domain's stores were built."""

    name: str
    side: Side
    """Whether it was given as training or as evaluation data."""
    digest: str
    """Hash of its content."""


@dataclass(frozen=True)
class DomainStores:
    train: TokenStore | None
    """None for a domain that is only measured."""
    eval: TokenStore
    sources: tuple[UsedSource, ...] = ()
    """What they were built from, training data first."""
    stream: StreamedRows | None = None
    """How the parts behind `train` are made, if the domain is streamed and has any."""

    @property
    def report(self) -> Report:
        """What happened to all rows that were read."""
        return Report.merged([Report(**store.manifest["report"]) for store in (self.train, self.eval) if store])


def training_stores(stores: Mapping[str, DomainStores]) -> dict[str, TokenStore]:
    return {name: domain.train for name, domain in stores.items() if domain.train is not None}


def prepare_stores(
    domains: Mapping[str, DomainConfig],
    data: DataConfig,
    model: ModelConfig,
    cache_dir: Path,
    on_progress: OnProgress = lambda done, total, domain, num_rows: None,
) -> dict[str, DomainStores]:
    """The stores of every domain, built if they are not in the cache; of a streamed domain those of its first rows.

    ValueError, with a message for the user, if a domain cannot be used.
    """
    cache_dir = cache_dir.resolve()
    cache_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = cached_tokenizer(model, cache_dir)
    fingerprint = fingerprint_tokenizer(tokenizer)
    plans = [plan_domain(domain, config, data, fingerprint) for domain, config in domains.items()]
    for plan in plans:
        fetch_folder(cache_dir / plan.key)
    missing = [plan for plan in plans if not (cache_dir / plan.key).exists()]
    if missing:
        _build_missing(missing, data, tokenizer, cache_dir, on_progress)
    for plan in plans:
        if not is_published(cache_dir / plan.key):
            publish_folder(cache_dir / plan.key)
    stores = {plan.domain: _open(plan, data, cache_dir) for plan in plans}
    for domain, pair in stores.items():
        check_bad_rows(domain, data, pair.report)  # a cached store may be from a run that tolerated more bad rows
    return stores


def _open(plan: DomainPlan, data: DataConfig, cache_dir: Path) -> DomainStores:
    folder = cache_dir / plan.key
    train = TokenStore.open(folder / "train") if plan.is_trained else None
    tasks = [task for task in plan.tasks if task.shard.index == 0]
    sources = tuple(UsedSource(task.source.name, task.side, task.source.digest) for task in tasks)
    has_more = train is not None and next_position(train.manifest) is not None
    return DomainStores(
        train, TokenStore.open(folder / "eval"), sources, StreamedRows(plan=plan, data=data) if has_more else None
    )


def _build_missing(
    plans: list[DomainPlan],
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    cache_dir: Path,
    on_progress: OnProgress,
) -> None:
    import ray

    tasks = [task for plan in plans for task in plan.tasks]
    if not ray.is_initialized() or _are_small(tasks):
        run = partial(_run_here, tokenizer)
    else:
        # Ray does not resolve references inside a list, so a worker fetches the tokenizer once for all its tasks.
        run = partial(_run_on_ray, on_this_node(cache_dir), [ray.put(tokenizer)])
    streamed = [plan for plan in plans if plan.rows_per_part is not None]
    for index, num_rows in run(_begin_stream, [(plan, data, cache_dir) for plan in streamed]):
        on_progress(1.0, 1.0, streamed[index].domain, num_rows)
    _build_whole([plan for plan in plans if plan.rows_per_part is None], data, run, cache_dir, on_progress)


def _build_whole(
    plans: list[DomainPlan],
    data: DataConfig,
    run: Callable[..., Iterator[tuple[int, Any]]],
    cache_dir: Path,
    on_progress: OnProgress,
) -> None:
    tasks = [task for plan in plans for task in plan.tasks]
    building = {plan.domain: Path(tempfile.mkdtemp(prefix=f".{plan.key}-", dir=cache_dir)) for plan in plans}
    try:
        places = _find_lines(run, tasks)
        tokenizing = [(task, data, building[task.domain], places.get(task.source.path)) for task in tasks]
        progress = {plan.domain: _Progress(plan, on_progress) for plan in plans}
        shards: dict[str, dict[int, TokenShard]] = defaultdict(dict)
        for index, shard in run(_tokenize, tokenizing):
            task = tokenizing[index][0]
            shards[task.domain][index] = shard
            progress[task.domain].add(_size(task), shard.report.num_rows)
        packing: list[tuple[Any, ...]] = []
        for plan in plans:
            of_plan = [shard for _, shard in sorted(shards[plan.domain].items())]
            check_bad_rows(plan.domain, data, Report.merged([shard.report for shard in of_plan]))
            check_sides(plan, of_plan, data)
            stores = building[plan.domain] / "stores"
            packing += [(plan, side, of_plan, data, stores) for side in plan.sides]
        for index, _ in run(_pack, packing):
            progress[packing[index][0].domain].add_packed()
        for plan in plans:
            publish(building[plan.domain] / "stores", cache_dir / plan.key)
    finally:
        for folder in building.values():
            shutil.rmtree(folder, ignore_errors=True)


class _Progress:
    """What is done of a domain: its parts of files, then its stores."""

    def __init__(self, plan: DomainPlan, on_progress: OnProgress) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self._size = sum(map(_size, plan.tasks))
        self._done, self._num_rows, self._num_packed = 0.0, 0, 0
        self.add(0.0, 0)

    def add(self, size: float, num_rows: int) -> None:
        self._done += size
        self._num_rows += num_rows
        packing = self._size * _PACKING_SHARE
        done = self._done + packing * self._num_packed / len(self._plan.sides)
        self._on_progress(done, self._size + packing, self._plan.domain, self._num_rows)

    def add_packed(self) -> None:
        self._num_packed += 1
        self.add(0.0, 0)


def _are_small(tasks: Sequence[ShardTask]) -> bool:
    return all(task.source.hub is None for task in tasks) and sum(map(_size, tasks)) <= _SMALL_BYTES


def _size(task: ShardTask) -> float:
    return task.source.size / task.shard.count


def cached_tokenizer(model: ModelConfig, cache_dir: Path) -> "PreTrainedTokenizerBase":
    """The model's tokenizer as used for the stores of a cache: if its chat template writes the date, the cache's date
    is used. Loaded once, as that takes longer than all look-ups in a complete cache."""
    return _load_frozen(model, cache_dir)[0]


def template_day(config: RunConfig) -> date | None:
    """The date that the model's chat template writes into the rows of a run; None if it writes none."""
    return _load_frozen(config.model.with_absolute_paths(), config.cache_dir.resolve())[1]


@lru_cache(maxsize=1)
def _load_frozen(model: ModelConfig, cache_dir: Path) -> tuple["PreTrainedTokenizerBase", date | None]:
    tokenizer = load_tokenizer(model)
    return tokenizer, freeze_date(tokenizer, cache_dir)


def _find_lines(run: Callable[..., Iterator[tuple[int, Any]]], tasks: Sequence[ShardTask]) -> dict[Path | None, Any]:
    """By file that several tasks read, where its blocks of lines are, as a task takes them."""
    divided = list(dict.fromkeys(task.source.path for task in tasks if task.source.path and task.shard.count > 1))
    return {divided[index]: found for index, found in run(_look_for_lines, [(path,) for path in divided])}


def _look_for_lines(tokenizer: "PreTrainedTokenizerBase", path: Path) -> Blocks | None:
    return find_lines(path)


def _tokenize(
    tokenizer: "PreTrainedTokenizerBase", task: ShardTask, data: DataConfig, building: Path, blocks: Blocks | None
) -> TokenShard:
    return tokenize_shard(task, data, tokenizer, building, blocks)


def _begin_stream(tokenizer: "PreTrainedTokenizerBase", plan: DomainPlan, data: DataConfig, cache_dir: Path) -> int:
    """Make the first part of a streamed domain, and its evaluation store; the number of rows that were read."""
    maker = PartMaker(plan, data, tokenizer, cache_dir)
    maker.make_next()
    return maker.report.num_rows


def _pack(
    tokenizer: "PreTrainedTokenizerBase",
    plan: DomainPlan,
    side: Side,
    shards: list[TokenShard],
    data: DataConfig,
    building: Path,
) -> None:
    building.mkdir(exist_ok=True)
    pack_side(plan, side, shards, data, tokenizer.pad_token_id, building)


def _run_here(
    tokenizer: "PreTrainedTokenizerBase", body: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Any]]:
    """(index of the call, result) of every call, in order."""
    for index, arguments in enumerate(calls):
        yield index, body(tokenizer, *arguments)


def _run_on_ray(
    where: Mapping[str, Any],
    tokenizer: "list[ray.ObjectRef]",
    body: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
) -> Iterator[tuple[int, Any]]:
    """(index of the call, result) of every call, as they finish; a task's ValueError is raised unchanged.

    The other tasks are then left to finish: cancelling a task that is just completing aborts this process (a failed
    check inside Ray 2.60).
    """
    import ray

    task = ray.remote(num_cpus=1, **where)(_single_threaded)
    pending = {task.remote(body, tokenizer, *arguments): index for index, arguments in enumerate(calls)}
    try:
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            result = ray.get(ready)
            yield pending.pop(ready), result
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from None
        raise


def _single_threaded(body: Callable[..., Any], tokenizer: "list[ray.ObjectRef]", *arguments: Any) -> Any:
    # A task has one CPU; the tokenizer would otherwise use all of them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return body(_fetch(*tokenizer), *arguments)


@lru_cache(maxsize=1)
def _fetch(tokenizer: "ray.ObjectRef") -> "PreTrainedTokenizerBase":
    import ray

    return ray.get(tokenizer)
