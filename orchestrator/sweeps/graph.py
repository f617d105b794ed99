"""One graph of trainings: each is trained once, after the training that it starts from, as many at a time as fit.

The truth is on disk: a training with a result is not trained again, one that was stopped resumes from its checkpoint,
and one that another process is training is waited for. So a command that was killed can simply be started again, and
two commands that need the same training share it.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from orchestrator.runs.failure import explain, forget_failure, note_failure
from orchestrator.runs.lock import FolderInUseError
from orchestrator.sweeps.crews import Crew
from orchestrator.sweeps.work import Node, Work
from orchestrator.tracking.watch import track
from orchestrator.training.driver import ReadyRun
from workers.durable import remove_folder

_LOOK_EVERY_SECONDS = 1.0  # at what another process trains

Failures = dict[str, str]
"""Key of a node that has no result -> why, for the user."""


def run_graph(
    nodes: Iterable[Node],
    work: Work,
    crew: Crew,
    *,
    keeps_model: Callable[[Node], bool] = lambda node: True,
    after: Callable[[], None] = lambda: None,
) -> Failures:
    """Train what has no result yet, and what that starts from; KeyboardInterrupt if the user or a job manager stops it.

    Where `keeps_model` is False, a training leaves its numbers only; what others start from is kept in any case.
    `after` is called whenever a training has come to its end.
    """
    graph = _Graph(nodes, work, crew, keeps_model)
    if not graph.left:
        return {}
    work.start_ray([node.cluster for node in graph.left])
    crew.open(graph.left)
    is_interrupted = False
    try:
        while graph.left or crew.num_running:
            num_before = len(graph.left)
            for node in list(graph.left):
                graph.advance(node)
            if graph.wait(is_stuck=num_before == len(graph.left)):
                after()
    except KeyboardInterrupt:
        is_interrupted = True
        raise
    finally:
        crew.close(is_interrupted)
        graph.release()
    return graph.failures


class _Graph:
    """What is left of a graph, and what was found out about the rest."""

    def __init__(self, nodes: Iterable[Node], work: Work, crew: Crew, keeps_model: Callable[[Node], bool]) -> None:
        distinct = _with_parents(nodes)
        self.left = [node for node in distinct if not node.is_finished()]
        self.failures: Failures = {}
        self._work, self._crew = work, crew
        parents = {node.parent.key for node in self.left if node.parent is not None}
        self._kept = {node.key for node in distinct if node.key in parents or keeps_model(node)}
        self._running: dict[str, tuple[ReadyRun, ExitStack]] = {}
        self._elsewhere: set[str] = set()
        for node in distinct:
            if node not in self.left and node.key not in self._kept:
                _drop_checkpoints(node.find_folder())
        if num_found := len(distinct) - len(self.left):
            work.console.print(f"{num_found} of {len(distinct)} runs are done already", highlight=False)

    def advance(self, node: Node) -> None:
        """Start the node if it can be started, or find that it needs no start."""
        parent = node.parent
        if parent is not None and parent.key in self.failures:
            self._fail(node, f"not started: {parent.title}, which it starts from, has no result")
        elif node.is_finished():  # by another process
            self.left.remove(node)
        elif (parent is None or parent.is_finished()) and self._crew.has_room():
            self._begin(node)

    def wait(self, is_stuck: bool) -> bool:
        """Wait for something to happen, and take in the runs that ended; whether there were any."""
        seconds = _LOOK_EVERY_SECONDS if self._elsewhere else None
        if not self._crew.num_running:
            if is_stuck and self.left:
                time.sleep(_LOOK_EVERY_SECONDS)
            return False
        ended = self._crew.wait(seconds)
        for node, error in ended:
            self._end(node, error)
        return bool(ended)

    def release(self) -> None:
        """Give up what is held for runs that did not end."""
        for _, held in self._running.values():
            held.close()

    def _begin(self, node: Node) -> None:
        with ExitStack() as held:
            try:
                run_id = held.enter_context(node.hold())
                if node.is_finished():  # by the process that had it until now
                    self.left.remove(node)
                    return
                forget_failure(node.find_folder())
                self._crew.check(node)
                with self._crew.paused():
                    run = node.resolve(run_id, self._work)
            except FolderInUseError:
                if node.key not in self._elsewhere:
                    self._elsewhere.add(node.key)
                    told = f"another process is training {node.title}; waiting for it"
                    self._work.console.print(told, markup=False, highlight=False)
                return
            except Exception as error:  # of any kind: the others continue, and the user sees it
                self._fail(node, explain(error))
                return
            run = run if node.key in self._kept else run.without_models()
            held.enter_context(track([run.tracked]))
            self._crew.start(node, run)
            self._running[node.key] = run, held.pop_all()
        self._elsewhere.discard(node.key)
        self.left.remove(node)

    def _end(self, node: Node, error: BaseException | None) -> None:
        run, held = self._running.pop(node.key)
        with held:
            try:
                if error is not None:
                    raise error
                node.finish(run, self._work)
                if node.key not in self._kept:
                    _drop_checkpoints(run.plan.folder)
            except Exception as failure:
                note_failure(run.plan.folder, explain(failure))
                self.failures[node.key] = explain(failure)

    def _fail(self, node: Node, reason: str) -> None:
        self.left.remove(node)
        self._elsewhere.discard(node.key)
        self.failures[node.key] = reason


def _drop_checkpoints(folder: Path) -> None:
    """Of a training that leaves numbers only; a run that kept its model may still be started from."""
    if not (folder / "model").exists():
        remove_folder(folder / "checkpoints")


def _with_parents(nodes: Iterable[Node]) -> list[Node]:
    """Every node once, after the one that it starts from."""
    ordered: dict[str, Node] = {}
    for node in nodes:
        chain = [node]
        while (parent := chain[-1].parent) is not None:
            chain.append(parent)
        for each in reversed(chain):
            ordered.setdefault(each.key, each)
    return list(ordered.values())
