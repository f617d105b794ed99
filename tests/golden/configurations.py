"""The runs whose names are frozen: one configuration file as a user writes it, and changes as `--set` takes them.

Paths are absolute and lead nowhere, so that no digest depends on the machine; stores are fixed fingerprints and counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from orchestrator.config.load import load_config
from orchestrator.config.sweep import SweepConfig
from orchestrator.prepare.token_stores import DomainStores
from workers.data.store import TokenStore

_WRITTEN = """
name: assistant
output_dir: /no-such-disk/runs
seed: 11
model: {path: owner/model-1b, dtype: bfloat16}
domains:
  math: {train: data/math.jsonl, eval: data/math-eval.jsonl}
  code: {train: [data/code-1.jsonl.gz, data/code-2.jsonl.gz], eval_fraction: 0.05}
  chat: {train: data/chat.parquet, eval: data/chat-eval.jsonl, format: messages}
  safety: {eval: data/safety.jsonl}
data: {max_length: 1024, packing: true}
mixing: {type: proportional}
training: {max_steps: 400, global_batch_size: 32, micro_batch_size: 4, learning_rate: 2.0e-5}
evaluation: {every: 50, max_rows: 128}
cluster: {num_workers: 2}
"""
_STAGES = """stages=[
    {name: skills, domains: [math, code]},
    {name: chat, domains: {chat: 1, math: 0.25}, optimizer: kept, epochs: 2},
    {name: apart, start: base, domains: {chat: 500}, seed: 3, mixing: {type: temperature, tau: 2.0}},
]"""
_SIZES = {"math": 9_000, "code": 21_000, "chat": 4_000, "safety": 300}

CHANGES: dict[str, list[str]] = {
    "plain": [],
    "free keys": [  # what may differ when a run resumes
        "cluster.num_workers=4",
        "tracking=[tensorboard]",
        "training.checkpoint_every=7",
        "training.keep_checkpoints=5",
        "data.log_samples=true",
        "data.cache_dir=/elsewhere",
        "output_dir=/other-disk",
        "reference.max_steps=9",
        "detection.max_texts=2000",
        "compare.variants.small.training.learning_rate=1e-6",
    ],
    "lora": ["training.strategy={type: lora, rank: 16, alpha: 32}"],
    "cofitune": [
        "training.strategy={type: cofitune, layers: [0.25, 0.5], modules: [up, down]}",
        "training.strategy.importance={files: [/no-such-disk/a.safetensors, /no-such-disk/b.safetensors]}",
    ],
    "cofitune measured": ["training.strategy={type: cofitune, mask: gradient, importance: {num_rows: 64, merge: max}}"],
    "fixed": ["mixing={type: fixed, shares: {math: 0.2, code: 0.5, chat: 0.3}}"],
    "fixed detected": ["mixing={type: fixed, shares: detected}"],
    "inverse": ["mixing={type: inverse, initial: uniform}"],
    "expansion": ["mixing={type: versatune, target: math, initial: uniform, reference: computed, delta: 0.2}"],
    "mixture of skills": ["mixing={type: mixture_of_skills}"],
    "versatune": ["mixing={type: versatune, initial: detected, reference: computed, sigma: 0.6}"],
    "versatune written": [
        "mixing={type: versatune, initial: uniform, reference: {math: 0.7, code: 1.1, chat: 1.9}}",
    ],
    # A word that nothing needs is in the digest all the same.
    "reference without use": ["mixing={type: versatune, initial: uniform, update: loss}", "reference.max_steps=60"],
    "reference steps": ["mixing={type: versatune, initial: uniform, reference: computed}", "reference.max_steps=60"],
    "reference file": ["mixing={type: versatune, initial: uniform, reference: /no-such-disk/reference.json}"],
    "epochs": ["training={epochs: 3, global_batch_size: 32, micro_batch_size: 4, schedule: constant}"],
    "tokens": ["training.max_steps=null", "training.max_tokens=50000000", "mixing.unit=tokens"],
    "deepspeed": ["training.deepspeed={zero_stage: 3, gradient_dtype: bfloat16}"],
    "stages": [_STAGES],
    "dmt": ["stages={plan: dmt, specialised: [math, code], general: [chat], k: 0.125}"],
    "sequential": ["stages={plan: sequential, order: [math, code, chat]}"],
}


@dataclass(frozen=True)
class _Store:
    fingerprint: str
    num_examples: int
    num_rows: int
    num_tokens: int
    folder: Path = Path("/no-such-disk/token-stores/key/train")


def written(folder: Path, name: str, *changes: str) -> SweepConfig:
    """The configuration file, written to `folder` and loaded with the changes of this name and more."""
    path = folder / "config.yaml"
    path.write_text(_WRITTEN)
    return load_config(path, [*CHANGES[name], *changes], check_files=False)


def stores_of(run: SweepConfig) -> Mapping[str, DomainStores]:
    """The stores of a run's domains; how much of a domain is taken is part of their fingerprint."""
    stores = {}
    for name, domain in run.domains.items():
        size = domain.count or max(1, round(domain.fraction * _SIZES[name]))
        taken = _Store(f"{name}-{domain.fraction:g}-{domain.count}-train", size, size // 2, 250 * size)
        held_out = _Store(f"{name}-eval", 64, 32, 16_000)
        train = cast(TokenStore, taken) if domain.is_trained else None
        stores[name] = DomainStores(train, cast(TokenStore, held_out))
    return stores
