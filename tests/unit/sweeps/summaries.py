"""What a finished run leaves, without the run."""

from collections.abc import Mapping
from statistics import mean

from orchestrator.config.run import RunConfig
from orchestrator.runs.records import DomainSummary, LossCourse, RunSummary


def write_summary(run: RunConfig, start: float, ends: Mapping[str, float]) -> None:
    """summary.json of a run whose domains went from `start` to these losses; its folder is there."""
    summary = RunSummary(
        name=run.name,
        steps=5,
        seconds=1.0,
        num_tokens=100,
        tokens_per_second=100.0,
        weights_versions=1,
        mixing_type=run.mixing.type,
        mean_loss_nats=LossCourse(start=start, end=mean(ends.values())),
        domains={name: DomainSummary(loss_nats_start=start, loss_nats_end=end) for name, end in ends.items()},
    )
    (run.folder / "summary.json").write_text(summary.model_dump_json())
