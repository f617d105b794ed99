"""A fake run on disk, in exactly the public formats, that can be written step by step."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest

from workers.clock import format_time
from workers.contracts import DomainFeedback, DomainWeights
from workers.validation.example_losses import EvaluationHistory
from workers.validation.loss_statistics import ExampleLosses

EVALUATION_TOKENS = 4000
STEP_TOKENS = 8192
BEGUN_AT = 1_800_000_000.0


class FakeRun:
    """Five (or other) domains under a made-up versatune; deterministic in the seed."""

    def __init__(self, path: Path, domains: Sequence[str], total_steps: int, every: int, seed: int) -> None:
        self.path, self.domains, self.total_steps, self.every = path, list(domains), total_steps, every
        self.random = np.random.default_rng(seed)
        self.base = {domain: 1.4 + 0.35 * index for index, domain in enumerate(self.domains)}
        self.drop = {domain: (0.7 if index % 3 else 0.35) for index, domain in enumerate(self.domains)}
        self.drop[self.domains[-1]] = -0.12  # one domain is forgotten
        self.shares = {domain: 1.0 / len(self.domains) for domain in self.domains}
        self.shares_seen: list[dict[str, float]] = []
        self.losses: dict[int, dict[str, float]] = {}
        self.epochs = dict.fromkeys(self.domains, 0.0)
        self.version = -1
        self.has_errors = True  # runs of older versions have none
        for folder in ("weights", "feedback"):
            (path / folder).mkdir(parents=True)
        config = {
            "name": path.name,
            "domains": {domain: {"train": [f"{index}.jsonl"]} for index, domain in enumerate(self.domains)},
            "model": {"path": "Qwen/Qwen2.5-0.5B"},
            "mixing": {"type": "versatune", "sigma": 0.5},
            "training": {"max_steps": total_steps, "deepspeed": {"zero_stage": 2}},
            "evaluation": {"every": every, "best": "mean"},
            "cluster": {"num_workers": 2},
        }
        (path / "config.json").write_text(json.dumps(config))

    def write_weights(self, effective_step: int, reason: Literal["algorithm", "operator"] = "algorithm") -> None:
        self.version += 1
        weights = DomainWeights(
            version=self.version,
            effective_step=effective_step,
            shares=self.shares,
            reason=reason if self.version else "initial",
            by="versatune",
        )
        (self.path / "weights" / f"{self.version:06d}.json").write_text(weights.model_dump_json())

    def loss(self, domain: str, step: int) -> float:
        return self.base[domain] - self.drop[domain] * (1.0 - math.exp(-3.0 * step / self.total_steps))

    def write_evaluation(self, step: int, losses: dict[str, float] | None = None) -> None:
        noise = self.random.normal(0.0, 0.008, len(self.domains))
        noisy = {d: self.loss(d, step) + float(n) for d, n in zip(self.domains, noise, strict=True)}
        self.losses[step] = losses or noisy
        feedback = DomainFeedback(
            run_id="r",
            attempt=1,
            step=step,
            weights_version=max(self.version, 0),
            loss_sum_nats={domain: loss * EVALUATION_TOKENS for domain, loss in self.losses[step].items()},
            num_tokens={domain: EVALUATION_TOKENS for domain in self.losses[step]},
            **(self.errors(step) if self.has_errors else {}),
            time=format_time(BEGUN_AT + 1.6 * step + 0.5),
        )
        (self.path / "feedback" / f"{step:08d}.json").write_text(feedback.model_dump_json())
        values = {f"gamma/{domain}": 0.1 + 0.2 * self.base[domain] for domain in self.domains}
        values |= {f"phi/{domain}": self.losses[step].get(domain, 0.0) / 3.0 for domain in self.domains}
        values["temperature"] = 1.0 / (1.0 + step)
        self.append("mixing.jsonl", {"step": step, "weights_version": self.version, "values": values})

    def errors(self, step: int) -> dict[str, dict[str, Any]]:
        """Of the evaluation after a step, each domain's another: 0.011, 0.012, ... and a tenth of it for a change."""
        finite = [domain for domain, loss in self.losses[step].items() if math.isfinite(loss)]
        error = {domain: 0.011 + 0.001 * self.domains.index(domain) for domain in finite}
        changes = {
            domain: {
                "nats": self.losses[step][domain] - self.losses[0][domain],
                "standard_error": error[domain] / 10,
            }
            for domain in finite
            if step > 0 and math.isfinite(self.losses[0].get(domain, math.nan))
        }
        return {
            "num_examples": dict.fromkeys(self.losses[step], 150),
            "num_held_out": dict.fromkeys(self.losses[step], 300),
            "standard_error_nats": error,
            "sampling_error_nats": {domain: value * math.sqrt(0.5) for domain, value in error.items()},
            "change_from_first": changes,
        }

    def write_example_losses(self, step: int, losses: dict[str, ExampleLosses]) -> None:
        """What each held-out example lost at an evaluation that was written before; its feedback gets the same sums."""
        (self.path / "evaluations").mkdir(exist_ok=True)
        EvaluationHistory(self.path, step).write(step, losses)
        self.write_evaluation(step, {domain: part.loss_nats for domain, part in losses.items()})

    def change_shares(self, effective_step: int) -> None:
        raw = {domain: share * math.exp(float(self.random.normal(0.0, 0.25))) for domain, share in self.shares.items()}
        total = math.fsum(raw.values())
        self.shares = {domain: value / total for domain, value in raw.items()}
        self.write_weights(effective_step)

    def metric_line(self, step: int) -> dict[str, Any]:
        rows = dict(zip(self.domains, map(int, self.random.multinomial(8, list(self.shares.values()))), strict=True))
        for domain in self.domains:
            self.epochs[domain] += rows[domain] / 400
        noisy = {d: round(self.loss(d, step) + float(self.random.normal(0, 0.12)), 4) for d in self.domains}
        return {
            "step": step,
            "time": format_time(BEGUN_AT + 1.6 * step),
            "loss_nats": sum(rows[d] * noisy[d] for d in self.domains) / 8,
            "domain_loss_nats": {d: noisy[d] if rows[d] else None for d in self.domains},
            "num_tokens": STEP_TOKENS,
            "num_loss_tokens": 3100,
            "tokens_per_second": round(5120.0 + float(self.random.normal(0, 120)), 1),
            "learning_rate": 2e-5 * 0.5 * (1.0 + math.cos(math.pi * step / self.total_steps)),
            "grad_norm": None if step == 1 else round(0.9 + 0.1 * float(self.random.random()), 4),
            "weights_version": self.version,
            "rows": rows,
            "epochs": dict(self.epochs),
            "seconds": 1.6,
        }

    def append(self, file: str, record: dict[str, Any]) -> None:
        with (self.path / file).open("a") as lines:
            lines.write(json.dumps(record) + "\n")

    def write_start(self) -> None:
        self.write_weights(effective_step=1)
        self.write_evaluation(0)

    def write_steps(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.append("metrics.jsonl", self.metric_line(step))
            if step % self.every == 0 or step == self.total_steps:
                self.write_evaluation(step)
                if step < self.total_steps:
                    self.change_shares(step + 1)

    def write_summary(self) -> None:
        mean = {step: sum(losses.values()) / len(losses) for step, losses in self.losses.items()}
        worst = {step: max(losses.values()) for step, losses in self.losses.items()}
        end, best = max(mean), min(mean, key=lambda step: mean[step])
        moments = {"start": 0, "best": best, "end": end}
        domains = {
            domain: {
                **{f"loss_nats_{label}": self.losses[step][domain] for label, step in moments.items()},
                "share_initial": 1.0 / len(self.domains),
                "share_final": self.shares[domain],
                "share_mean": self.shares[domain],
                "rows_seen": round(self.epochs[domain] * 400),
                "epochs": self.epochs[domain],
                "num_bad_rows": 0,
            }
            for domain in self.domains
        }
        summary = {
            "name": self.path.name,
            "steps": self.total_steps,
            "seconds": 1.6 * self.total_steps,
            "num_tokens": STEP_TOKENS * self.total_steps,
            "tokens_per_second": 5120.0,
            "weights_versions": self.version + 1,
            "mixing_type": "versatune",
            "best": {"step": best, "criterion": "mean", "loss_nats": mean[best]},
            "mean_loss_nats": {label: mean[step] for label, step in moments.items()},
            "worst_loss_nats": {label: worst[step] for label, step in moments.items()},
            "domains": domains,
        }
        (self.path / "summary.json").write_text(json.dumps(summary))


class MakeFakeRun(Protocol):
    """`fake_run(...)`: a run of `total_steps`, of which the first `num_steps` are written (default: all)."""

    def __call__(
        self,
        name: str = "five-domains",
        domains: Sequence[str] = ("math", "code", "law", "medicine", "general"),
        total_steps: int = 200,
        num_steps: int | None = None,
        every: int = 20,
        seed: int = 0,
    ) -> FakeRun: ...


@pytest.fixture
def fake_run(tmp_path: Path) -> MakeFakeRun:
    return make_fake_run_in(tmp_path)


def make_fake_run_in(folder: Path) -> Callable[..., FakeRun]:
    def make(
        name: str = "five-domains",
        domains: Sequence[str] = ("math", "code", "law", "medicine", "general"),
        total_steps: int = 200,
        num_steps: int | None = None,
        every: int = 20,
        seed: int = 0,
    ) -> FakeRun:
        run = FakeRun(folder / name, domains, total_steps, every, seed)
        run.write_start()
        run.write_steps(1, total_steps if num_steps is None else num_steps)
        if num_steps is None:
            run.write_summary()
        return run

    return make


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
