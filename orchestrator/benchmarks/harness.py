"""Run lm-evaluation-harness on a model loaded by raymix.

The harness reads a task's data from the hub, or from where a local task file points. Two things that it would do
without asking are refused unless allowed: running code that the model writes (tasks marked `unsafe_code`, such as
humaneval), and downloading and running the script of a metric from the hub (`evaluate.load`). Python files next to
local task files are the user's own and are trusted.
"""

import difflib
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from rich.text import Text

from orchestrator.views.terminal import LiveView, progress_bars
from workers.config.model import ModelConfig

_REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_NUM_NEAR_NAMES = 3
_CACHE_HINT = "without network access it must be in the cache from an earlier evaluation"


class ScoringView(LiveView):
    """The progress of one model: a bar in a terminal, a line elsewhere."""

    def __init__(self, name: str, console: Console) -> None:
        self._console = console
        remaining = TimeRemainingColumn(elapsed_when_finished=True)
        self._progress = progress_bars(console, MofNCompleteColumn(), remaining)
        super().__init__(self._progress)
        self._name = name
        self._num_requests = 0
        self._bar = self._progress.add_task(f"{name}: loading", total=None)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if not self._console.is_terminal and error[0] is None:
            self._console.print(Text(f"{self._name}: {self._num_requests:,} answers"), soft_wrap=True)

    def begin(self, num_requests: int) -> None:
        """This many more answers are expected."""
        self._num_requests += num_requests
        self._progress.update(self._bar, description=self._name, total=self._num_requests)

    def advance(self) -> None:
        self._progress.advance(self._bar)


def harness_version() -> str:
    """Version of the installed harness; ValueError if it is not installed."""
    if find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed; run `pip install 'raymix[evaluate]'`")
    return version("lm_eval")


def load_tasks(names: Sequence[str], folder: Path | None, allow_code: bool) -> dict[str, Any]:
    """Load tasks, groups or tags with their data, in the form that the harness evaluates.

    Local task files in `folder` take precedence over the harness's own. ValueError if a task is unknown, does not load,
    or needs to run code, of a model or of a metric from the hub, without `allow_code`.
    """
    manager = _find_tasks(names, folder)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        if (manager.task_index[name].cfg or {}).get("unsafe_code"):  # such tasks may run code while they load
            _refuse_unsafe([name], allow_code)
        part = _load_task(manager, name, allow_code)
        _refuse_unsafe([task for task, made in part["tasks"].items() if hasattr(made, "UNSAFE_CODE")], allow_code)
        for kind, entries in part.items():
            loaded[kind] |= entries
    return loaded


def _load_task(manager: Any, name: str, allow_code: bool) -> Any:
    with _hub_metrics(allow_code) as faults:
        try:
            part = manager.load([name])
        except ConnectionError as error:
            faults.append(f"{error}; {_CACHE_HINT}")
        except Exception as error:  # a task file can fail in any way a program can
            faults.append(f"{type(error).__name__}: {error}")
    if faults:
        raise ValueError(f"task {name} does not load: {faults[0]}")
    return part


def _refuse_unsafe(tasks: Sequence[str], allow_code: bool) -> None:
    if tasks and not allow_code:
        raise ValueError(
            f"task {tasks[0]} runs the code that the model writes, with your rights on this machine; "
            "--allow-code permits it, preferably inside a container"
        )


def evaluate_model(
    config: ModelConfig,
    tasks: Mapping[str, Any],
    progress: ScoringView,
    *,
    limit: int | None,
    batch_size: int,
    chat: bool,
    allow_code: bool,
) -> dict[str, Any]:
    """The harness's results for one model (its `EvalResults`), which runs on a GPU if there is one.

    `tasks` are from `load_tasks`, for one model after the other; the other settings are those of `raymix evaluate`.
    """
    import torch
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from workers.model.loading import load_model
    from workers.model.tokenizer import load_tokenizer

    model: Any = load_model(config)
    model.config.use_cache = True  # loading for training turned it off
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    wrapped = HFLM(pretrained=model, tokenizer=load_tokenizer(config), batch_size=batch_size)
    _report_progress(wrapped, progress)
    _seed(tasks)
    with _hub_metrics(allow_code):
        results = evaluate(
            wrapped,
            tasks,
            limit=limit,
            log_samples=False,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=allow_code,
        )
    return dict(results)


def _find_tasks(names: Sequence[str], folder: Path | None) -> Any:
    """The harness's index of tasks. It reads its own 14,000 files only if the local ones are not enough."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        local = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(local.all_subtasks):
            return local
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, _NUM_NEAR_NAMES)
            said = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists the harness's own"
            raise ValueError(f"task {name} is unknown; {said}{_broken_files(folder)}")
    return manager


def _broken_files(folder: Path | None) -> str:
    """Name unreadable task files, which the harness skips silently."""
    from lm_eval.tasks._yaml_loader import load_yaml

    broken = []
    for path in sorted(folder.rglob("*.yaml")) if folder else []:
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # any reason that it cannot be read
            broken.append(f"{path}: {' '.join(str(error).split())}")
    return f" (not readable: {'; '.join(broken)})" if broken else ""


@contextmanager
def _hub_metrics(allow_code: bool) -> Iterator[list[str]]:
    """Allow or refuse metrics from the hub, which are scripts that `evaluate.load` downloads and runs. Yields a list of
    failures: the harness carries on without a metric that does not load, and fails only when it calls it."""
    import evaluate

    load, faults = evaluate.load, []

    def load_or_tell(path: str, *arguments: Any, **named: Any) -> Any:
        if not allow_code:
            faults.append(f"metric {path} is a script on the hub, which runs with your rights; --allow-code permits it")
            raise ValueError(faults[-1])
        try:
            return load(path, *arguments, **named)
        except Exception as error:
            faults.append(f"metric {path}: {error} ({_CACHE_HINT})")
            raise

    if allow_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # required by humaneval's metric
    evaluate.load = load_or_tell
    try:
        yield faults
    finally:
        evaluate.load = load


def _report_progress(wrapped: Any, progress: ScoringView) -> None:
    """Count requests where the harness passes them to the model, and answers in a hook meant for caching."""

    def answer(method: Callable[..., Any], requests: Sequence[Any]) -> Any:
        progress.begin(len(requests))
        return method(requests, disable_tqdm=True)

    for kind in _REQUESTS:
        setattr(wrapped, kind, partial(answer, getattr(wrapped, kind)))
    wrapped.set_cache_hook(SimpleNamespace(add_partial=lambda *_: progress.advance()))


def _seed(tasks: Mapping[str, Any]) -> None:
    """Seed as the harness's own command does: the same few-shot examples for every model, and none by default."""
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
