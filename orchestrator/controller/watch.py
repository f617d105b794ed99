"""Which rank of a run hangs or is slow, by what the ranks report about themselves. Pure: the caller gives the time."""

import statistics
from dataclasses import dataclass
from typing import Any

from workers.training.progress import Progress

_SLOW = 2.0  # times as long as the others' forward passes
_STEPS = 10  # without a sign of progress that make a hang, if they are longer than the bound


@dataclass(frozen=True)
class Hang:
    """A rank that is to be replaced."""

    progress: Progress
    reason: str
    actor: Any
    """Handle of the rank's process, as it gave it."""

    def __str__(self) -> str:
        return f"{self.progress} {self.reason}"


class RankWatch:
    """The newest report of every rank, and when it came."""

    def __init__(self) -> None:
        self._reports: dict[int, tuple[float, Progress, Any]] = {}
        self._slow: set[tuple[str, int]] = set()  # host and pid of those that were named

    def hear(self, progress: Progress, actor: Any, now: float) -> None:
        """Take a rank's report; it replaces that of the process that had the rank before."""
        self._reports[progress.rank] = now, progress, actor

    def forget(self, progress: Progress) -> None:
        """The process that reported this is gone; another may have taken its rank since."""
        _, newest, _ = self._reports.get(progress.rank, (0.0, None, None))
        if newest and (newest.host, newest.pid) == (progress.host, progress.pid):
            del self._reports[progress.rank]

    def actors(self) -> list[Any]:
        """Handles of the ranks' processes, those that died unnoticed among them."""
        return [actor for _, _, actor in self._reports.values()]

    def find_slow(self) -> str | None:
        """The rank whose forward passes take twice as long as the others' or longer; each process is named once.

        At ZeRO stage 3 every pass gathers weights from all ranks, so the passes take equally long, and none is named.
        """
        median_s = {rank: report.median_pass_s for rank, (_, report, _) in self._reports.items()}
        known = {rank: seconds for rank, seconds in median_s.items() if seconds is not None}
        if len(known) < 2 or len(known) < len(median_s):
            return None
        slowest = max(known, key=lambda rank: known[rank])
        _, report, _ = self._reports[slowest]
        usual_s = statistics.median(seconds for rank, seconds in known.items() if rank != slowest)
        if known[slowest] < _SLOW * usual_s or (report.host, report.pid) in self._slow:
            return None
        self._slow.add((report.host, report.pid))
        return (
            f"rank {slowest} on {report.host} (pid {report.pid}) is slow, and the others wait for it in every step: "
            f"its forward passes take {known[slowest]:.2g} s, the other ranks' {usual_s:.2g} s (medians); see what "
            "else runs on its machine"
        )

    def find_hang(self, bound_s: float, now: float) -> Hang | None:
        """The rank that hangs, if one does: it reports nothing for `bound_s` seconds, or, in a steady phase, shows no
        progress for that long and for ten median steps. Of several, the one that began: the others wait for it."""
        silent = [(now - heard, progress, actor) for heard, progress, actor in self._reports.values()]
        if silent and (longest := max(silent, key=lambda each: each[0]))[0] > bound_s:
            seconds, progress, actor = longest
            return Hang(progress, f"has reported nothing for {seconds:.0f} s", actor)
        stuck = [(progress.quiet_s, progress, actor) for _, progress, actor in silent if _is_stuck(progress, bound_s)]
        if stuck:
            seconds, progress, actor = max(stuck, key=lambda each: each[0])
            median = f"{progress.median_step_s:.2g} s"
            return Hang(progress, f"has made no progress for {seconds:.0f} s (median step {median})", actor)
        return None


def _is_stuck(progress: Progress, bound_s: float) -> bool:
    return progress.is_steady and progress.quiet_s > max(bound_s, _STEPS * (progress.median_step_s or 0))
