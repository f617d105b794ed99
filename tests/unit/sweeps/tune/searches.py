"""A run with a search section, for tests of its parts."""

from pathlib import Path
from typing import Any

from orchestrator.config.sweep import SweepConfig
from workers.contracts import DomainFeedback

DOMAINS = ("math", "code", "law")


def config_with(search: dict[str, Any], **changes: Any) -> SweepConfig:
    data: dict[str, Any] = {
        "name": "tuned",
        "seed": 5,
        "model": {"path": "owner/name"},
        "domains": {name: {"train": f"{name}.jsonl"} for name in DOMAINS},
        "mixing": {"type": "versatune", "initial": "uniform", "sigma": 0.7, "reference": dict.fromkeys(DOMAINS, 1.0)},
        "training": {"max_steps": 100, "global_batch_size": 8, "micro_batch_size": 4},
        "search": search,
    }
    return SweepConfig.model_validate(data | changes)


def write_evaluation(run_folder: Path, step: int, loss_nats: float) -> None:
    """An evaluation with the same loss for every domain; the run's feedback folder is there."""
    feedback = DomainFeedback(
        run_id="r",
        attempt=1,
        step=step,
        weights_version=0,
        loss_sum_nats=dict.fromkeys(DOMAINS, loss_nats),
        num_tokens=dict.fromkeys(DOMAINS, 1),
    )
    (run_folder / "feedback" / f"{step:08d}.json").write_text(feedback.model_dump_json())
