"""One or two gloo processes that stay up: starting DeepSpeed takes 10 s, a further engine in the same process 0.1 s."""

import atexit
import functools
import gc
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

_TIMEOUT_SECONDS = 120


class ZeroProcesses:
    """A process group; `run` calls one function on all ranks."""

    def __init__(self, world_size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world_size, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The function's result on each rank; an error or a hang of any rank fails the test and ends the group."""
        for pipe in self._pipes:
            pipe.send((function, args))
        answers: dict[Connection, Any] = {}
        while len(answers) < len(self._pipes):
            # Whichever answers first: a rank that failed is the reason why the others hang.
            ready = wait([pipe for pipe in self._pipes if pipe not in answers], timeout=_TIMEOUT_SECONDS)
            if not ready:
                self.close()
                raise TimeoutError(f"{len(self._pipes) - len(answers)} ranks did not answer in {_TIMEOUT_SECONDS} s")
            for pipe in ready:
                try:
                    is_result, answers[pipe] = pipe.recv()
                except EOFError:  # the rank is gone, and the next test needs another
                    is_result, answers[pipe] = False, "its process ended"
                if not is_result:
                    self.close()
                    raise RuntimeError(f"rank {self._pipes.index(pipe)} failed:\n{answers[pipe]}")
        return [answers[pipe] for pipe in self._pipes]

    def close(self) -> None:
        """End the processes; the next test starts new ones."""
        processes.cache_clear()
        for process in self._processes:
            process.kill()
            process.join()


@functools.cache
def processes(world_size: int) -> ZeroProcesses:
    """The group of that size, shared by all tests of the session."""
    group = ZeroProcesses(world_size)
    atexit.register(group.close)
    return group


def _serve(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), DS_ACCELERATOR="cpu")
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send((True, function(*args)))
        except BaseException:  # the parent has to hear of anything, or it waits
            pipe.send((False, traceback.format_exc()))
        # DeepSpeed collects garbage up to seven times an engine, each time over all objects of the libraries.
        gc.collect()
        gc.freeze()
