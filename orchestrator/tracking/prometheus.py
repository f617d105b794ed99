"""Prometheus: a run's newest numbers as Ray metrics, which Ray serves with its own on every node.

The driver is a process of the Ray session, so its metrics reach the endpoint; Ray prefixes each name with `ray_`.
Labels are the run's name and, for some metrics, the domain, the kind of event or the key of an algorithm's value: the
number of series grows with the number of domains, not of steps. Values that are not finite are not exported; the last
one stays.
"""

import math
from collections import Counter as Tally
from collections.abc import Mapping
from pathlib import Path

from ray.util.metrics import Counter, Gauge

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.step_table import StepTable
from workers.contracts import DomainFeedback

Readings = Mapping[str, Mapping[str, float]]
"""Metric -> value of its label (empty without one) -> number."""

Metrics = dict[str, tuple[str, tuple[str, ...]]]
"""Metric -> what it is, and its label besides the run's name, if any."""
GAUGES: Metrics = {
    "raymix_step": ("Optimizer steps done.", ()),
    "raymix_share": ("Share of the domain in the next step's mixture.", ("domain",)),
    "raymix_epochs": ("Passes over the domain so far.", ("domain",)),
    "raymix_loss_nats": ("Held-out loss at the last evaluation, in nats per loss token.", ("domain",)),
    "raymix_base_loss_nats": ("Held-out loss of the base model, in nats per loss token.", ("domain",)),
    "raymix_train_loss_nats": ("Loss of the last step's batch, in nats per loss token.", ()),
    "raymix_tokens_per_second": ("Speed over the last 50 steps, without evaluations.", ()),
    "raymix_learning_rate": ("Learning rate of the last step.", ()),
    "raymix_grad_norm": ("Norm of the gradient at the last step, before clipping.", ()),
    "raymix_weights_version": ("Version of the next step's mixture.", ()),
    "raymix_algorithm_value": ("Internal value of the mixing algorithm after the last evaluation.", ("key",)),
}
COUNTERS: Metrics = {
    "raymix_tokens_total": ("Tokens trained on.", ()),
    "raymix_feedback_total": ("Evaluations passed to the mixing algorithm.", ()),
    "raymix_events_total": ("Events of the run, by kind.", ("kind",)),
    "raymix_step_seconds_total": ("Seconds spent in optimizer steps.", ()),
    "raymix_evaluation_seconds_total": ("Seconds spent measuring held-out losses.", ()),
    "raymix_signal_seconds_total": ("Seconds spent measuring further signals.", ()),
}


class PrometheusMetrics:
    """The metrics of one run, in a process of a Ray session."""

    def __init__(self, folder: Path) -> None:
        self._run = RunFolder(folder)
        self._gauges = {name: Gauge(name, what, ("run", *labels)) for name, (what, labels) in GAUGES.items()}
        self._counters = {name: Counter(name, what, ("run", *labels)) for name, (what, labels) in COUNTERS.items()}
        self._counted: dict[tuple[str, str], float] = {}

    def look(self) -> None:
        """Export what is new in the run's files."""
        if not self._run.refresh():
            return
        for name, values in newest(self._run).items():
            for label, value in values.items():
                if math.isfinite(value):
                    self._gauges[name].set(float(value), self._tags(GAUGES[name][1], label))
        for name, totals in counted(self._run).items():
            for label, total in totals.items():
                # A resumed run repeats steps, which its files count once; a counter must never decrease.
                if (more := total - self._counted.get((name, label), 0.0)) > 0:
                    self._counters[name].inc(float(more), self._tags(COUNTERS[name][1], label))
                    self._counted[name, label] = total

    def end(self) -> None:
        self.look()

    def _tags(self, labels: tuple[str, ...], value: str) -> dict[str, str]:
        return {"run": self._run.name} | dict.fromkeys(labels, value)


def newest(run: RunFolder) -> Readings:
    """The value of every gauge."""
    table, feedback = run.metrics, run.feedback
    weights = run.weights_at(table.last_step + 1)
    is_base_known = bool(feedback) and feedback[0].step == 0
    return {
        "raymix_step": {"": table.last_step},
        "raymix_share": weights.shares if weights else {},
        "raymix_epochs": _last_of(table, "epochs/"),
        "raymix_loss_nats": _losses(feedback[-1]) if feedback else {},
        "raymix_base_loss_nats": _losses(feedback[0]) if is_base_known else {},
        "raymix_train_loss_nats": {"": table.last("loss_nats")},
        "raymix_tokens_per_second": {"": run.metrics.recent_tokens_per_second()},
        "raymix_learning_rate": {"": table.last("learning_rate")},
        "raymix_grad_norm": {"": table.last("grad_norm")},
        "raymix_weights_version": {"": weights.version} if weights else {},
        "raymix_algorithm_value": _last_of(run.mixing, "values/"),
    }


def counted(run: RunFolder) -> Readings:
    """The value of every counter."""
    table, feedback = run.metrics, run.feedback
    return {
        "raymix_tokens_total": {"": float(table.column("num_tokens").sum())},
        "raymix_feedback_total": {"": len(feedback)},
        "raymix_events_total": Tally(event.kind for event in run.events),
        "raymix_step_seconds_total": {"": float(table.column("seconds").sum())},
        "raymix_evaluation_seconds_total": {"": sum(each.evaluation_seconds for each in feedback)},
        "raymix_signal_seconds_total": {"": sum(each.signal_seconds for each in feedback)},
    }


def _last_of(table: StepTable, prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): table.last(key) for key in table.keys if key.startswith(prefix)}


def _losses(feedback: DomainFeedback) -> dict[str, float]:
    return {domain: feedback.loss_nats(domain) for domain in feedback.loss_sum_nats}
