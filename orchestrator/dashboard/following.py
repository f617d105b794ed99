"""Live pages: the disk is read once for everyone who follows the same page, and only while someone does.

A look takes CPU time that training needs: after a slow look, the next one waits longer. Only what has changed since the
last message is sent:

    {"parts": {id: html}, "figures": [...], "values": {...}}             everything: the first message
    {"parts": {id: html}, "patches": {index: patch}, "values": {...}}    the changes

The patch of a figure has the traces and keys that changed; of a list that has grown, only its new end.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

OUTLINE = "sections"  # the part with the placeholders of all figures
POLL_SECONDS = 1.0
REST = 9.0  # pause in multiples of a look's CPU time: at most a tenth of a core
MAX_UNSENT = 30
LOOKING = "looking"  # the name of threads that read run folders
Result = TypeVar("Result")
MAX_IDLE_PAGES = 8  # a long run takes 24 MB


async def in_thread(work: Callable[[], Result]) -> Result:
    """The result of `work`, in a thread of its own: one that waits for a slow disk holds up neither other work nor the
    end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is None:
            future.set_result(cast(Result, result))
        else:
            future.set_exception(error)

    def run() -> None:
        result, fault = None, None
        try:
            result = work()
        except Exception as error:
            fault = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, fault)

    threading.Thread(target=run, name=LOOKING, daemon=True).start()
    return await future


@dataclass(frozen=True)
class Snapshot:
    """HTML by element id, figures in the page's order, and values for its scripts."""

    parts: dict[str, str]
    figures: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def whole(self) -> dict[str, Any]:
        return {"parts": self.parts, "figures": self.figures, "values": self.values}

    def changes(self, before: "Snapshot") -> dict[str, Any] | None:
        """The message that updates a page from `before` to this; None if nothing has changed."""
        if self.parts.get(OUTLINE) != before.parts.get(OUTLINE) or len(self.figures) != len(before.figures):
            return self.whole()
        pairs = enumerate(zip(before.figures, self.figures, strict=True))
        message = {
            "parts": {name: part for name, part in self.parts.items() if before.parts.get(name) != part},
            "patches": {index: patch for index, (old, new) in pairs if (patch := figure_patch(old, new)) is not None},
            "values": self.values if self.values != before.values else {},
        }
        return message if any(message.values()) else None


def figure_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """The patch that turns the figure `old` into `new`; None if they are equal."""
    if old == new:
        return None
    traces, before = new["data"], old["data"]
    if [trace.keys() for trace in traces] != [trace.keys() for trace in before]:
        return {"figure": new}
    changed = {
        index: {
            key: _value_patch(before[index][key], value) for key, value in trace.items() if before[index][key] != value
        }
        for index, trace in enumerate(traces)
        if trace != before[index]
    }
    return {"traces": changed} | ({"layout": new["layout"]} if old["layout"] != new["layout"] else {})


def _value_patch(old: Any, new: Any) -> dict[str, Any]:
    if not (isinstance(old, list | tuple) and isinstance(new, list | tuple)):
        return {"value": new}
    num_kept = min(len(old), len(new))
    step = 1
    while num_kept > 0 and old[:num_kept] != new[:num_kept]:  # a running run only changes the last few entries
        num_kept, step = max(0, num_kept - step), 2 * step
    return {"from": num_kept, "values": new[num_kept:]}


class Page(Protocol):
    """A page that is polled."""

    def look(self) -> Snapshot | None:
        """The page as it is now; None if nothing has changed since the last look."""


class FollowedPage:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._lock = threading.Lock()
        self._newest: Snapshot | None = None
        self._snapshot: Snapshot | None = None  # what the followers have
        self._has_problem = False
        self._look_seconds = 0.0
        self._queues: set[asyncio.Queue[str]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_followed(self) -> bool:
        return bool(self._queues)

    async def prepare(self) -> None:
        """Take a first look while the browser still loads the page; errors are reported to followers later."""
        if not self._lock.locked():
            with suppress(Exception):
                await in_thread(self._look)

    async def follow(self, idle_seconds: float) -> AsyncGenerator[str | None, None]:
        """Yield messages as JSON: everything first, then changes; None after `idle_seconds` without any."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._queues.add(queue)
        try:
            if self._snapshot is not None:
                queue.put_nowait(_encode(self._snapshot.whole()))
            if self._task is None:
                self._task = asyncio.create_task(self._watch())
            while True:
                try:
                    yield await asyncio.wait_for(queue.get(), idle_seconds)
                except TimeoutError:
                    yield None
        finally:
            self._queues.discard(queue)
            if not self._queues and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _watch(self) -> None:
        while True:
            try:
                await self._look_once()
            except Exception as error:  # a folder removed, a damaged file: report it and look again
                self._send({"problem": f"{type(error).__name__}: {error}"})
                self._has_problem = True
            await asyncio.sleep(max(POLL_SECONDS, REST * self._look_seconds))

    async def _look_once(self) -> None:
        new = await in_thread(self._look)
        message = None
        if new is not None and new is not self._snapshot:
            message = new.whole() if self._snapshot is None else new.changes(self._snapshot)
            self._snapshot = new
        if message is not None or self._has_problem:
            self._has_problem = False
            self._send(message or {})

    def _look(self) -> Snapshot | None:
        with self._lock:  # a look that nobody waits for may still be running; its result is kept
            began = time.thread_time()
            self._newest = self._page.look() or self._newest
            self._look_seconds = time.thread_time() - began
            return self._newest

    def _send(self, message: dict[str, Any]) -> None:
        text = _encode(message)
        for queue in self._queues:
            if queue.qsize() >= MAX_UNSENT and self._snapshot is not None:  # a follower that cannot keep up starts over
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(_encode(self._snapshot.whole()))
            else:
                queue.put_nowait(text)


class Pages:
    """Pages by address; of those that nobody follows, the newest are kept."""

    def __init__(self) -> None:
        self._pages: dict[Hashable, FollowedPage] = {}

    def get(self, key: Hashable, make: Callable[[], Page]) -> FollowedPage:
        page = self._pages.pop(key, None) or FollowedPage(make())
        self._pages[key] = page
        idle = [other for other, kept in self._pages.items() if not kept.is_followed and kept is not page]
        for other in idle[: max(0, len(idle) - MAX_IDLE_PAGES)]:
            del self._pages[other]
        return page


def _encode(message: dict[str, Any]) -> str:
    """Add the clock of this machine, from which the page computes how long ago something was."""
    return json.dumps(message | {"clock": time.time()}, allow_nan=False, separators=(",", ":"))
