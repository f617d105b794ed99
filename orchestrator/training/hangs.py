"""While a worker group trains: end what hangs, so that Ray replaces it, and say what it was.

A rank that hangs would hold up the others for the half hour after which a collective gives up, or forever. Its process
is killed; Ray Train then replaces the group, which resumes from the last checkpoint. The controller's process is killed
if it does not answer; Ray restarts it, and the training that waits for it goes on.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.controller.actor import RayWeightsSource
from orchestrator.controller.watch import Hang
from workers.events import log_event

LOOKS = 6
"""How often ranks report and the driver looks, within the bound."""

_ALIVE_SECONDS = 5.0  # within which a process that is not dead need not answer


@contextmanager
def ending_hangs(source: RayWeightsSource, run_folder: Path, bound_s: float) -> Iterator[list[str]]:
    """Meanwhile look for hangs from a thread; the list gets a line for each one that was ended."""
    told: list[str] = []
    is_over = threading.Event()

    def tell(step: int, message: str) -> None:
        told.append(message)
        log_event(run_folder, step, "hang", message)

    def work() -> None:
        import ray

        while not is_over.wait(bound_s / LOOKS):
            try:
                hang = source.find_hang(bound_s)
                if hang and not _is_dead(hang):
                    again = "its process was killed, and the workers start again from the last checkpoint"
                    tell(hang.progress.step, f"{hang}; {again}")
                    ray.kill(hang.actor)
                if hang:
                    source.forget(hang.progress)
            except ray.exceptions.GetTimeoutError:
                message = (
                    f"the controller did not answer for {bound_s:g} s; its process was killed and is started again"
                )
                tell(0, message)
                source.restart()
            except ray.exceptions.RayError:  # the controller is being restarted, or the session ends
                continue

    thread = threading.Thread(target=work, name="hangs", daemon=True)
    thread.start()
    try:
        yield told
    finally:
        is_over.set()


def _is_dead(hang: Hang) -> bool:
    """Whether the process has ended, as when its group is being replaced already."""
    import ray

    try:
        ray.get(hang.actor.__ray_ready__.remote(), timeout=_ALIVE_SECONDS)
    except ray.exceptions.RayActorError:
        return True
    except ray.exceptions.GetTimeoutError:
        pass
    return False
