"""DeepSpeed, imported and set up once for a process that is a rank."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


def import_deepspeed() -> Any:
    """The module, for this rank's device and within its process group."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _absent("mlflow"):  # its autotuner would import it wherever it is installed
        import deepspeed

    _import_muon_as_it_stands()
    if not gc.get_freeze_count():
        # Building an engine collects garbage up to seven times. What was imported until now never becomes garbage, and
        # looking at half a million such objects takes 0.3 s each time.
        gc.freeze()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # Its shared-memory collectives need a compiler and a minute to build, and start slower than none.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It adopts the process group; otherwise a ZeRO-3 model loaded before the first engine sees one rank.
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    return deepspeed


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Meanwhile a package that was not imported before cannot be."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def _import_muon_as_it_stands() -> None:
    """Every ZeRO optimizer imports Muon, which nothing here uses and which would bring torch's compiler: a second."""
    from deepspeed.runtime import compiler

    compile_decorator = compiler.compile
    compiler.compile = lambda: _as_it_stands
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compile_decorator


def _as_it_stands(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
