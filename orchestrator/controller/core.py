"""The controller's core: a pure state machine, feedback in, versions of the weights out. No disk, no clock, no Ray.

It keeps four promises. A version, once pulled for a step, is never replaced for that step. Feedback counts once per
step and in the order of the steps, however often and late it is delivered. Feedback from a worker group that was
replaced (a lower attempt) is rejected. No algorithm sees a loss, or a required signal, that is missing or not finite:
the domain keeps its last value.

All state follows from the versions and the feedback, so a resumed controller replays these instead of loading a copy of
its state. Such a copy could disagree with the journal after a crash between two writes, and would break when an
algorithm's fields change; a replay meets exactly the numbers that the workers trained with.

A user's request is handled before the first pull of a step, and its version applies from that step on. So a version
with `effective_step` e preceded the feedback of step s if and only if e <= s, which gives the order of replay.
"""

import math
from copy import copy, deepcopy
from dataclasses import dataclass, field

from orchestrator.controller.operator import ControlRequest, apply_request, hold_pinned
from orchestrator.mixing import MixingAlgorithm
from workers.contracts import ERROR_FIELDS, DomainFeedback, DomainWeights


class FencedOutError(RuntimeError):
    """A push came from an attempt or run that is not the current one."""


@dataclass(frozen=True)
class ControllerEvent:
    """Something to tell the user: `kind` for filtering, `message` for reading."""

    step: int
    kind: str
    message: str


@dataclass(frozen=True)
class Decision:
    """The result of one feedback."""

    version: DomainWeights | None = None  # the new version, if any
    events: list[ControllerEvent] = field(default_factory=list)


class ControllerCore:
    """Versions, the feedback that they came from, and the algorithm in between."""

    def __init__(self, run_id: str, algorithm: MixingAlgorithm) -> None:
        self.run_id = run_id
        self.algorithm = algorithm
        self.attempt = 0
        self.versions: list[DomainWeights] = []
        self._last_counted = -1  # step of the newest feedback that was counted
        self._last: dict[str, tuple[float, int]] = {}  # newest finite (sum of nats, tokens) of each domain
        self._last_signals: dict[tuple[str, str], float] = {}  # newest finite value by (signal, domain)
        self.last_pulled = 0  # the highest step for which a version was given out

    def begin(self, recorded: DomainWeights | None = None) -> DomainWeights:
        """The initial version, which applies from step 1; on replay the recorded one."""
        by = self.algorithm.config.type
        version = recorded or DomainWeights(
            version=0, effective_step=1, shares=self.algorithm.initial_weights(), reason="initial", by=by
        )
        self.versions.append(version)
        return version

    def version_of(self, step: int) -> DomainWeights:
        """The version that applies to a step, as far as is known now."""
        return next(version for version in reversed(self.versions) if version.effective_step <= max(step, 1))

    def pull(self, step: int) -> DomainWeights:
        """The version that applies to a step, permanently."""
        self.last_pulled = max(self.last_pulled, step)
        return self.version_of(step)

    def operate(self, step: int, request: ControlRequest, request_id: str) -> DomainWeights:
        """Handle a user's request at a step not pulled yet; ValueError if it does not fit the current shares."""
        shares, pinned, paused = apply_request(request, self.versions[-1])
        version = DomainWeights(
            version=len(self.versions),
            effective_step=step,
            shares=shares,
            reason="operator",
            by=request.by,
            why=request.why,
            request=request_id,
            pinned=pinned,
            paused=paused,
        )
        self.take_over(version)
        return version

    def take_over(self, version: DomainWeights) -> None:
        """Count an operator's version, new or recorded."""
        self.versions.append(version)
        self.last_pulled = max(self.last_pulled, version.effective_step - 1)
        self.algorithm.adopt(version.shares)

    def fork(self) -> "ControllerCore":
        """A copy that can observe while this one stays unchanged until the result is on disk."""
        twin = copy(self)
        twin.versions, twin._last = list(self.versions), dict(self._last)
        twin._last_signals = dict(self._last_signals)
        twin.algorithm = deepcopy(self.algorithm)
        return twin

    def accepts(self, feedback: DomainFeedback) -> bool:
        """Whether this feedback is new; False if its step, or a later one, was already counted.

        FencedOutError if it comes from another run or an earlier attempt.
        """
        if feedback.run_id != self.run_id:
            raise FencedOutError(f"feedback of run {feedback.run_id!r} sent to run {self.run_id!r}")
        if feedback.attempt < self.attempt:
            raise FencedOutError(f"feedback of attempt {feedback.attempt}, but attempt {self.attempt} is running")
        return feedback.step > self._last_counted

    def observe(self, feedback: DomainFeedback, recorded: DomainWeights | None = None) -> Decision:
        """Count one evaluation that `accepts` let through.

        On replay, `recorded` is the next version of the journal. It overrides the algorithm's answer, since workers
        already trained with it.
        """
        self._last_counted = feedback.step
        self.last_pulled = max(self.last_pulled, feedback.step)  # measured after this step, so that was pulled
        self.attempt = max(self.attempt, feedback.attempt)
        complete, events = self._complete(feedback)
        if complete is not None and feedback.step == 0:
            events += [ControllerEvent(0, "mixing", text) for text in self.algorithm.concerns(complete)]
        answer, now = self.algorithm.observe(complete) if complete else None, self.versions[-1]
        if answer is None or now.paused:
            return Decision(None, events)
        version = recorded or DomainWeights(
            version=len(self.versions),
            effective_step=self.last_pulled + 1,
            shares=hold_pinned(answer, now),
            reason="algorithm",
            by=self.algorithm.config.type,
            pinned=now.pinned,
        )
        self.versions.append(version)
        self.last_pulled = max(self.last_pulled, version.effective_step - 1)
        return Decision(version, events)

    def _complete(self, feedback: DomainFeedback) -> tuple[DomainFeedback | None, list[ControllerEvent]]:
        """The feedback with gaps filled by each domain's last finite value; None while a domain has none."""
        signals, events = self._complete_signals(feedback)
        measured = []
        for name in self.algorithm.names:
            if math.isfinite(loss := feedback.loss_nats(name)):
                measured.append(name)
                self._last[name] = (feedback.loss_sum_nats[name], feedback.num_tokens[name])
                continue
            what = "missing" if math.isnan(loss) and name not in feedback.loss_sum_nats else f"{loss}"
            instead = "keeps its last value" if name in self._last else "the weights stay unchanged until it has one"
            message = f"loss of domain {name!r} at step {feedback.step} is {what}; {instead}"
            events.append(ControllerEvent(feedback.step, "non_finite_loss", message))
        if signals is None or set(self._last) != set(self.algorithm.names):
            return None, events
        sums = {name: self._last[name][0] for name in self.algorithm.names}
        tokens = {name: self._last[name][1] for name in self.algorithm.names}
        # The errors of this evaluation do not describe a domain that keeps its last value.
        known = {field: getattr(feedback, field) for field in ERROR_FIELDS}
        errors = {field: {n: values[n] for n in measured if n in values} for field, values in known.items()}
        update = {"loss_sum_nats": sums, "num_tokens": tokens, "signals": signals, **errors}
        return DomainFeedback(**(dict(feedback) | update)), events

    def _complete_signals(
        self, feedback: DomainFeedback
    ) -> tuple[dict[str, dict[str, float]] | None, list[ControllerEvent]]:
        events = []
        wanted = [(signal, name) for signal in self.algorithm.required_signals for name in self.algorithm.names]
        for signal, name in wanted:
            value = feedback.signals.get(signal, {}).get(name)
            if value is not None and math.isfinite(value):
                self._last_signals[signal, name] = value
                continue
            what = "missing" if value is None else f"{value}"
            instead = "keeps its last value" if (signal, name) in self._last_signals else "no update until it has one"
            message = f"signal {signal} of domain {name!r} at step {feedback.step} is {what}; {instead}"
            events.append(ControllerEvent(feedback.step, "non_finite_signal", message))
        if any(pair not in self._last_signals for pair in wanted):
            return None, events
        names, last = self.algorithm.names, self._last_signals
        known = {signal: {name: last[signal, name] for name in names} for signal in self.algorithm.required_signals}
        return known, events
