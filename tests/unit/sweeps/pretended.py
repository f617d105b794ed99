"""Runs over three small domains, and trainings that only leave what a run leaves."""

import json
from pathlib import Path
from typing import Any

from orchestrator.config.sweep import SweepConfig
from orchestrator.training.driver import ReadyRun
from tests.runs import write_llama
from workers.contracts import DomainFeedback, DomainWeights

DOMAINS = ("math", "code", "chat")
MIXED = {"plan": "mixed_sequential", "specialised": ["math", "code"], "general": ["chat"]}
DMT = {"plan": "dmt", "specialised": ["math", "code"], "general": ["chat"], "k": 0.5}


def write_data(folder: Path) -> None:
    """A base model and 20 rows of each domain."""
    write_llama(folder / "base")
    for name in DOMAINS:
        rows = [{"prompt": f"{name} {i}", "completion": str(i)} for i in range(20)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_in(folder: Path, name: str, **more: Any) -> SweepConfig:
    """A run over that data."""
    return SweepConfig.model_validate(
        {
            "name": name,
            "output_dir": folder / "runs",
            "model": {"path": str(folder / "base")},
            "domains": {d: {"train": str(folder / f"{d}.jsonl"), "eval_fraction": 0.2} for d in DOMAINS},
            "data": {"max_length": 64},
            "mixing": {"type": "proportional"},
            "training": {"max_steps": 5, "global_batch_size": 4},
        }
        | more
    )


def pretend(run: ReadyRun) -> None:
    """The losses fall from 2 to 1."""
    folder, domains = run.plan.folder, list(run.plan.domains)
    for part in ("weights", "feedback", "checkpoints", "model"):
        (folder / part).mkdir(exist_ok=True)
    shares = {size.name: 1 / len(run.sizes) for size in run.sizes}
    weights = DomainWeights(version=0, effective_step=1, shares=shares, reason="initial", by="proportional")
    (folder / "weights" / "000000.json").write_text(weights.model_dump_json())
    steps = [{"step": n + 1, "num_tokens": 100, "tokens_per_second": 50.0} for n in range(run.plan.num_steps)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    measured = {"row": [0, 1], "example": [0, 0], "loss_sum_nats": [6.0, 4.0], "num_tokens": [6, 4]}
    (folder / "evaluation.json").write_text(json.dumps({"domains": dict.fromkeys(domains, measured)}))
    for step, loss in ((0, 2.0), (run.plan.num_steps, 1.0)):
        feedback = DomainFeedback(
            run_id=run.plan.run_id,
            attempt=1,
            step=step,
            weights_version=0,
            loss_sum_nats=dict.fromkeys(domains, loss * 10),
            num_tokens=dict.fromkeys(domains, 10),
        )
        (folder / "feedback" / f"{step:08d}.json").write_text(feedback.model_dump_json())
