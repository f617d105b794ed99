"""What has to be done to prepare a domain: its store key, its shard tasks, and the two stores at the end.

These are the bodies of the tasks; who runs them where is none of their business.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workers.config import DataConfig, DomainConfig
from workers.data.files import Shard
from workers.data.report import Report
from workers.data.sources import Source, plan_sources
from workers.data.store import STORE_VERSION, build_store
from workers.data.tokenization import SIDES, ShardTask, Side, TokenShard
from workers.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class DomainPlan(Settings):
    """How one domain gets its stores."""

    domain: str
    """Its name."""
    key: str
    """Hash of everything that the stores depend on: the name of their folder."""
    has_eval_source: bool
    """Whether the evaluation rows are its own, not set aside from the training rows."""
    eval_fraction: float
    """The fraction of the prompts that is set aside otherwise."""
    tasks: list[ShardTask]
    """What to tokenise, training rows first."""


def plan_domain(domain: str, config: DomainConfig, data: DataConfig, tokenizer_fingerprint: str) -> DomainPlan:
    """Look at the domain's sources and lay out the work."""
    train, evaluation = plan_sources(domain, config, "train"), plan_sources(domain, config, "eval")
    eval_fraction = 0.0 if evaluation else config.eval_fraction
    key = {
        "store_version": STORE_VERSION,
        "tokenizer": tokenizer_fingerprint,
        "train": [_identity(source) for source in train],
        "eval": [_identity(source) for source in evaluation] or eval_fraction,
        "data": data.model_dump(include={"max_length", "packing", "too_long"}),
    }
    return DomainPlan(
        domain=domain,
        key=blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest(),
        has_eval_source=bool(evaluation),
        eval_fraction=config.eval_fraction,
        tasks=_tasks(domain, train, "train", eval_fraction) + _tasks(domain, evaluation, "eval", 0.0),
    )


def fingerprint_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of what decides the ids and the mask: vocabulary and rules, special tokens, chat template."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.pop("truncation"), rules.pop("padding")  # state of the last call, not part of the tokenizer
    else:
        rules = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, rules, special, tokenizer.chat_template]
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()


def check_sides(plan: DomainPlan, shards: Sequence[TokenShard], data: DataConfig) -> None:
    """Refuse a domain with nothing to train on or nothing to evaluate on."""
    num_examples = {side: sum(shard.num_examples[side] for shard in shards) for side in SIDES}
    report = Report.merged([shard.report for shard in shards])
    facts = (
        f"{report.num_rows:,} rows were read, {report.num_bad_rows:,} could not be used and "
        f"{report.num_too_long_lost:,} were lost as longer than data.max_length {data.max_length} "
        f"(data.too_long: {data.too_long})"
    )
    if num_examples["eval"] == 0 and num_examples["train"] and not plan.has_eval_source:
        raise ValueError(
            f"domain {plan.domain!r}: no evaluation examples: {facts}, and eval_fraction {plan.eval_fraction} of the "
            f"prompts of the other {num_examples['train']:,} examples is not one; raise eval_fraction or give `eval` "
            "files"
        )
    for side, what in (("train", "training"), ("eval", "evaluation")):
        if num_examples[side] == 0:  # type: ignore[index]
            raise ValueError(
                f"domain {plan.domain!r}: no {what} examples: {facts}; give more rows, lower eval_fraction, raise "
                "data.max_length or set data.too_long: truncate"
            )


def pack_side(
    plan: DomainPlan, side: Side, shards: Sequence[TokenShard], data: DataConfig, pad_id: int, building: Path
) -> None:
    """Build the store of one side in the folder `building`."""
    sources = [shard.report for task, shard in zip(plan.tasks, shards, strict=True) if task.side == side]
    about: dict[str, object] = {
        "fingerprint": f"{plan.key}-{side}",
        "domain": plan.domain,
        "side": side,
        # Rows set aside from the training files are counted with these.
        "report": Report.merged(sources).model_dump(),
    }
    if side == "train":
        about["num_train_prompts_in_eval"] = _count_train_prompts_in_eval(shards)
    build_store(building / side, side, shards, data, pad_id, about)


def _count_train_prompts_in_eval(shards: Sequence[TokenShard]) -> int:
    prompts_in_eval = np.unique(np.concatenate([shard.array("eval", "prompts") for shard in shards]))
    return sum(int(np.isin(shard.array("train", "prompts"), prompts_in_eval).sum()) for shard in shards)


def _identity(source: Source) -> list[object]:
    return [source.digest, source.split, source.format, source.fields]


def _tasks(domain: str, sources: list[Source], side: Side, eval_fraction: float) -> list[ShardTask]:
    return [
        ShardTask(
            domain=domain, source=source, shard=Shard(index, source.num_shards), side=side, eval_fraction=eval_fraction
        )
        for source in sources
        for index in range(source.num_shards)
    ]
