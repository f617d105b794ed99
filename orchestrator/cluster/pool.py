"""Workers that each hold a model and process jobs: Ray actors if Ray is running, else one in this process.

A worker is created for the first job that has to be done, so nothing is loaded if all results are on disk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from orchestrator.config.cluster import ClusterConfig

if TYPE_CHECKING:
    import ray

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerPool(Generic[Job, Result]):
    """`with WorkerPool(make, cluster) as pool: for index, result in pool.map(jobs): ...`

    `make` creates the callable that processes jobs; it is sent to the workers, so it is a class or a partial of one.
    There are as many workers as for training, with the same CPUs and GPUs.
    """

    def __init__(self, make: Callable[[], Callable[[Job], Result]], cluster: ClusterConfig) -> None:
        self._make = make
        self._cluster = cluster
        self._here = _Worker(make)
        self._actors: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Free the workers' memory, CPUs and GPUs; the next job creates new ones."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._here = [], _Worker(self._make)

    def map(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """(index of the job, result) of every job, as they finish; a job's ValueError is raised unchanged."""
        import ray

        if jobs and ray.is_initialized():
            yield from self._map_on_ray(jobs)
            return
        for index, job in enumerate(jobs):
            yield index, self._here.answer(job)

    def _map_on_ray(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        import ray

        self._start_actors(min(self._cluster.min_workers, len(jobs)))
        waiting = iter(enumerate(jobs))
        pending: dict[Any, tuple[int, Any]] = {}
        for actor, (index, job) in zip(self._actors, waiting, strict=False):
            pending[actor.answer.remote(job)] = index, actor
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            index, actor = pending.pop(ready)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ValueError):
                    raise error.cause from None
                raise
            if (following := next(waiting, None)) is not None:
                pending[actor.answer.remote(following[1])] = following[0], actor
            yield index, result

    def _start_actors(self, count: int) -> None:
        import ray

        retries = self._cluster.max_failures
        actor = ray.remote(_Worker).options(
            num_cpus=self._cluster.cpus_per_worker,
            num_gpus=self._cluster.gpus_per_worker,
            max_restarts=retries,
            max_task_retries=retries,
        )
        self._actors += [actor.remote(self._make) for _ in range(count - len(self._actors))]


class _Worker:
    """Runs in an actor, or here; the first job loads the model, so that errors in loading are that job's errors."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._worker: Callable[[Any], Any] | None = None

    def answer(self, job: Any) -> Any:
        if self._worker is None:
            self._worker = self._make()
        return self._worker(job)


class TaskError(RuntimeError):
    """A task failed; the message says which and why."""


def as_completed(waiting: Mapping["ray.ObjectRef", str], what: str) -> Iterator[str]:
    """Names of these Ray tasks, each as its task finishes; TaskError, with `what` and the task's name, if one fails."""
    import ray

    left = dict(waiting)
    while left:
        (done, *_), _ = ray.wait(list(left), num_returns=1)
        name = left.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise TaskError(f"{what} {name!r}: {error.cause}") from error
        yield name
