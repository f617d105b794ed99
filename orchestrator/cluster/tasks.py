"""Ray tasks: many calls of one function, each reported as it finishes."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ray


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
