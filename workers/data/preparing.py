"""Preparing a domain: its store key, its shard tasks, and the two stores at the end.

These are the bodies of the tasks; where they run is up to the caller.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workers.config.data import DataConfig, DomainConfig
from workers.data.files import Shard
from workers.data.permutation import derive_key, permutation
from workers.data.report import Report
from workers.data.sources import Source, plan_sources
from workers.data.store import STORE_VERSION, build_store
from workers.data.tokenization import SIDES, ShardTask, Side, TokenShard
from workers.fingerprint import fingerprint
from workers.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_PART = 16_384
"""Rows of a streamed domain that are prepared at a time."""


class Sample(Settings):
    """Which training examples are used: the first `count`, or a fraction, of an order keyed by the seed."""

    fraction: float
    count: int | None
    seed: int

    @property
    def is_part(self) -> bool:
        return self.count is not None or self.fraction < 1.0

    def choose(self, domain: str, num_examples: int) -> NDArray[np.int64] | None:
        """Ascending indices of the examples, None for all; ValueError if there are fewer than `count`. A smaller sample
        is a subset of a larger one."""
        if self.count is not None and self.count > num_examples:
            raise ValueError(
                f"domain {domain!r}: count {self.count:,}, but it has {num_examples:,} training examples; lower count"
            )
        if not self.is_part:
            return None
        # Rounded as the row counts of the DMT paper are (arXiv 2310.05492), and at least one.
        count = self.count if self.count is not None else max(1, round(self.fraction * num_examples))
        return np.sort(permutation(derive_key(self.seed, "sample", domain), num_examples)[:count])


class DomainPlan(Settings):
    """How one domain gets its stores."""

    domain: str
    is_trained: bool
    """Whether it gets a training store."""
    key: str
    """Hash of everything that the stores depend on: the name of their folder."""
    has_eval_source: bool
    """Whether evaluation rows have a separate source instead of being set aside from the training rows."""
    eval_fraction: float
    """The fraction of the prompts that is set aside otherwise."""
    sample: Sample
    tasks: list[ShardTask]
    """What to tokenise, training rows first."""
    rows_per_part: int | None = None
    """Rows of a part, if the training rows are prepared part by part (`parts.py`); None if they are prepared whole."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """The stores that it gets: only evaluation if it is not trained on."""
        return SIDES if self.is_trained else ("eval",)


def plan_domain(domain: str, config: DomainConfig, data: DataConfig, tokenizer_fingerprint: str) -> DomainPlan:
    """Inspect the domain's sources and plan the work."""
    options = (data.train_on, data.zstd_window_mib)
    train, evaluation = (plan_sources(domain, config, split, *options) for split in ("train", "eval"))
    eval_fraction = 0.0 if evaluation else config.eval_fraction
    sample = Sample(fraction=config.fraction, count=config.count, seed=data.sample_seed)
    if evaluation and not config.is_trained:
        train = []
    key = {
        "store_version": STORE_VERSION,
        "tokenizer": tokenizer_fingerprint,
        "train": [_identity(source) for source in train],
        "eval": [_identity(source) for source in evaluation] or eval_fraction,
        "sample": sample.model_dump() | {"domain": domain} if sample.is_part else None,
        "data": data.model_dump(include={"max_length", "packing", "too_long"}),
    } | ({"rows_per_part": ROWS_PER_PART} if config.streaming else {})
    return DomainPlan(
        domain=domain,
        is_trained=config.is_trained,
        key=fingerprint(key, num_bytes=12),
        has_eval_source=bool(evaluation),
        eval_fraction=config.eval_fraction,
        sample=sample,
        tasks=_tasks(domain, train, "train", eval_fraction) + _tasks(domain, evaluation, "eval", 0.0),
        rows_per_part=ROWS_PER_PART if config.streaming and train else None,
    )


def fingerprint_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of what determines ids and mask: vocabulary and rules, special tokens, chat template."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.pop("truncation"), rules.pop("padding")  # state of the last call, not part of the tokenizer
    else:
        rules = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, rules, special, tokenizer.chat_template]
    return fingerprint(parts, num_bytes=12)


def check_sides(plan: DomainPlan, shards: Sequence[TokenShard], data: DataConfig) -> None:
    """Refuse a domain without training examples or without evaluation examples."""
    num_examples = {side: sum(shard.num_examples[side] for shard in shards) for side in SIDES}
    report = Report.merged([shard.report for shard in shards])
    facts = (
        f"{report.num_rows:,} rows were read, {report.num_bad_rows:,} could not be used and "
        f"{report.num_too_long_lost:,} were lost because they are longer than data.max_length {data.max_length} "
        f"(data.too_long: {data.too_long})"
    )
    if num_examples["eval"] == 0 and num_examples["train"] and not plan.has_eval_source:
        raise ValueError(
            f"domain {plan.domain!r}: no evaluation examples: {facts}, and eval_fraction {plan.eval_fraction} of the "
            f"prompts of the other {num_examples['train']:,} examples is not one; raise eval_fraction or give `eval` "
            "files"
        )
    names: dict[Side, str] = {"train": "training", "eval": "evaluation"}
    for side, what in names.items():
        if side in plan.sides and num_examples[side] == 0:
            raise ValueError(
                f"domain {plan.domain!r}: no {what} examples: {facts}; give more rows, lower eval_fraction, raise "
                "data.max_length or set data.too_long: truncate"
            )


def pack_side(
    plan: DomainPlan,
    side: Side,
    shards: Sequence[TokenShard],
    data: DataConfig,
    pad_id: int,
    building: Path,
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Build the store of one side in the folder `building`, from a shard for each task of the plan; `more` also goes
    into its manifest."""
    # Rows set aside for evaluation count as training rows; a domain without training counts all as evaluation.
    parts = zip(plan.tasks, shards, strict=True)
    report = Report.merged([shard.report for task, shard in parts if task.side == side or not plan.is_trained])
    chosen = None
    if side == "train":
        num_examples = sum(shard.num_examples[side] for shard in shards)
        chosen = plan.sample.choose(plan.domain, num_examples)
        num_not_chosen = 0 if chosen is None else num_examples - len(chosen)
        report = report.replaced(num_not_chosen=num_not_chosen)
    about = {"fingerprint": f"{plan.key}-{side}", "domain": plan.domain, "side": side, "report": report.model_dump()}
    build_store(building / side, side, shards, data, pad_id, about | dict(more), chosen)


def _identity(source: Source) -> list[object]:
    exclude = [exclusion.model_dump(exclude={"eval"}) for exclusion in source.exclude]
    targets = [source.train_on, source.text_has_template]
    # A detected format refuses rows that a named one reads.
    return [source.digest, source.split, source.format, source.fields, source.harmless is None, exclude, targets]


def _tasks(domain: str, sources: list[Source], side: Side, eval_fraction: float) -> list[ShardTask]:
    return [
        ShardTask(
            domain=domain, source=source, shard=Shard(index, source.num_shards), side=side, eval_fraction=eval_fraction
        )
        for source in sources
        for index in range(source.num_shards)
    ]
