"""The controller's memory: one small file for each version and each feedback, on disk before any caller sees it.

    weights/000012.json     DomainWeights          feedback/00000600.json     DomainFeedback
    requests/*.json         the user's requests, each handled before a step and then removed (operator.py)
    attempt.json            number of the current attempt
    mixing.jsonl, events.jsonl    internal values of the algorithm, and what happened; derived, for reading

The feedback is written first, then the version that follows from it, and then the call returns. A crash in between
leaves a feedback without its version; the replay decides again, from the same numbers, and writes it.
"""

import json
import math
from pathlib import Path
from threading import Event

from pydantic import BaseModel

from orchestrator.controller.core import ControllerCore
from orchestrator.controller.operator import describe_change, forget_request, read_request, waiting_requests
from orchestrator.mixing import MixingAlgorithm
from workers.bounded import read_model
from workers.contracts import DomainFeedback, DomainWeights
from workers.durable import teller, write_durably
from workers.events import log_event
from workers.storage.mirror import publish_missing


class _Attempt(BaseModel):
    """attempt.json."""

    attempt: int


class DurableController:
    """A `WeightsSource` whose answers outlive the process. Opening a folder with a history resumes from it.

    It accepts feedback of the run `run_id` only. Setting `stopping` acts like a call of `stop`.
    """

    def __init__(
        self, run_folder: Path, run_id: str, algorithm: MixingAlgorithm, stopping: Event | None = None
    ) -> None:
        self.folder = run_folder
        self.core = ControllerCore(run_id, algorithm)
        self._stopping = stopping or Event()
        self._is_stopped = False
        for part in ("weights", "feedback"):
            (run_folder / part).mkdir(parents=True, exist_ok=True)
            # What a process that was killed had written, and not yet announced, counts from now on.
            publish_missing(run_folder / part, teller(run_folder / part))
        self._replay()

    def open_attempt(self) -> int:
        """The next attempt's number; from now on, lower ones are rejected."""
        self.core.attempt += 1
        write_durably(self.folder / "attempt.json", json.dumps({"attempt": self.core.attempt}).encode())
        return self.core.attempt

    def history(self) -> list[DomainWeights]:
        return list(self.core.versions)

    def stop(self) -> None:
        """Return no more versions from `pull`, so that the training ends before the next step."""
        self._stopping.set()
        log_event(self.folder, self.core.last_pulled, "stop", "asked to end after the current step, with a checkpoint")

    def is_stopped(self) -> bool:
        """Whether a pull returned None, so that the training ended early."""
        return self._is_stopped

    def pull(self, step: int) -> DomainWeights | None:
        """The version that applies to `step`, permanently; None once the training is to stop."""
        if self._stopping.is_set():
            self._is_stopped = True
            return None
        if step > self.core.last_pulled:  # so that a request can apply from it on
            for request_id in waiting_requests(self.folder):
                self._operate(step, request_id)
        return self.core.pull(step)

    def push(self, feedback: DomainFeedback) -> DomainWeights:
        """Count one evaluation, once; returns the version that applies to the next step."""
        if self.core.accepts(feedback):
            self._write("feedback", f"{feedback.step:08d}", feedback)
            core = self.core.fork()
            decision = core.observe(feedback)
            if decision.version is not None:
                self._write("weights", f"{decision.version.version:06d}", decision.version)
            self.core = core  # only now: a decision that could not be written was never made
            self._note_values(feedback)
            for event in decision.events:
                log_event(self.folder, event.step, event.kind, event.message)
        return self.core.version_of(feedback.step + 1)

    def _operate(self, step: int, request_id: str) -> None:
        """Handle a request, unless the journal has its version: then only the file was left to remove."""
        if all(version.request != request_id for version in self.core.versions):
            core = self.core.fork()
            try:
                version = core.operate(step, read_request(self.folder, request_id), request_id)
            except ValueError as error:
                log_event(self.folder, step, "request_refused", str(error))
            else:
                self._write("weights", f"{version.version:06d}", version)
                self.core = core
                log_event(self.folder, step, "operator", describe_change(version))
        forget_request(self.folder, request_id)

    def _replay(self) -> None:
        """Bring the core to the state that the files imply.

        The algorithm sees the same feedback in the same order, and each recorded version overrides its answer. That
        restores its internal values without a file for every algorithm's state, and keeps every version that workers
        trained with, even if a newer release would decide differently.
        """
        versions = [read_model(path, DomainWeights) for path in self._files("weights")]
        (self.folder / "mixing.jsonl").write_text("")
        begun = self.core.begin(recorded=versions[0] if versions else None)
        if not versions:
            self._write("weights", f"{begun.version:06d}", begun)
        for path in self._files("feedback"):
            feedback = read_model(path, DomainFeedback)
            self._replay_operator(versions, feedback.step)
            number = len(self.core.versions)
            decision = self.core.observe(feedback, recorded=versions[number] if number < len(versions) else None)
            if decision.version is not None and number >= len(versions):
                self._write("weights", f"{number:06d}", decision.version)
            self._note_values(feedback)
        self._replay_operator(versions, math.inf)
        if len(self.core.versions) < len(versions):
            raise ValueError(
                f"{self.folder}: {len(versions)} weights versions, but feedback leads to {len(self.core.versions)}; "
                "restore the missing feedback files, or start again under another name"
            )
        attempt_file = self.folder / "attempt.json"
        if attempt_file.exists():
            self.core.attempt = max(self.core.attempt, read_model(attempt_file, _Attempt).attempt)

    def _replay_operator(self, versions: list[DomainWeights], last_step: float) -> None:
        """Take over the operator's versions that come next and apply from `last_step` or earlier."""
        for version in versions[len(self.core.versions) :]:
            if version.reason != "operator" or version.effective_step > last_step:
                return
            self.core.take_over(version)

    def _files(self, part: str) -> list[Path]:
        return sorted((self.folder / part).glob("[0-9]*.json"))

    def _write(self, part: str, name: str, record: DomainWeights | DomainFeedback) -> None:
        write_durably(self.folder / part / f"{name}.json", record.model_dump_json(indent=1).encode())

    def _note_values(self, feedback: DomainFeedback) -> None:
        version = self.core.versions[-1].version
        values = self.core.algorithm.metrics()
        if feedback.signals:
            values = {**values, "signal_seconds": feedback.signal_seconds}
        line = {"step": feedback.step, "weights_version": version, "values": values}
        with (self.folder / "mixing.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
