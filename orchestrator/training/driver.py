"""Train a run that is ready: with a worker group of the cluster, or in this process."""

from threading import Event

from orchestrator.training.resolve import ReadyRun
from orchestrator.training.stopping import run_until_stopped


def train(run: ReadyRun, *, in_this_process: bool = False, stopping: Event | None = None) -> None:
    """Train a run to its end, inside a Ray session; KeyboardInterrupt if it was stopped.

    Args:
        run: what to train.
        in_this_process: use this process as the only rank. For short trainings: a worker group takes seconds to start.
        stopping: ends the training with a checkpoint once set, as does the first Ctrl-C or SIGTERM.
    """
    if in_this_process:
        from orchestrator.training.single_process import train_in_process

        stopping = stopping or Event()
        run_until_stopped(lambda: train_in_process(run.plan, run.mixing, run.sizes, stopping), stopping.set, stopping)
    else:
        from orchestrator.training.ray_train import train_on_cluster

        train_on_cluster(run.plan, run.mixing, run.sizes, run.cluster, stopping)
