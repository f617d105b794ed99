"""The server and its routes, on 127.0.0.1 only.

/                    the list            /live/list            server-sent events
/run/<name>          one run             /live/run/<name>      likewise
/compare?run=&run=   side by side        /live/compare?...     likewise
/static/<name>       scripts and styles, from installed packages
/control/<name>      POST of a ControlRequest as JSON, with the token: set, pin, release, pause, resume
"""

import asyncio
import gzip
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web
from plotly.offline import get_plotlyjs
from pydantic import ValidationError
from rich.console import Console

from orchestrator.controller.operator import ControlRequest, submit_request
from orchestrator.dashboard.catalog import ROOT, Catalog, UnknownRunError
from orchestrator.dashboard.following import LOOKING, MAX_IDLE_PAGES, FollowedPage, Pages, in_thread
from orchestrator.dashboard.guard import add_headers, choose_token, digest_of, holds_token, only_this_machine, opening
from orchestrator.dashboard.pages import ComparePage, ListPage, RunPage, templates
from orchestrator.views.report.html import asset
from workers.storage.addresses import shown, uri_of
from workers.storage.client import StorageError, impatient
from workers.storage.reading import StoredRuns

MAX_BODY_BYTES = 1 << 16
HOST = "127.0.0.1"
MAX_COMPARED = 40
PATIENCE_SECONDS = 1.0  # with what is being read when the server ends
FOLLOW_SECONDS = 3.0  # between two looks at object storage
BEAT_SECONDS = 15.0  # so that a closed connection is noticed
_OWN = ("dashboard.css", "live.js", "list.js", "steer.js")


def build_app(root: Path, digest: str) -> web.Application:
    """The application for the runs below `root`; `digest` is that of the token for the controls."""
    server = _Server(Catalog(root), digest)
    app = web.Application(middlewares=[only_this_machine], client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(add_headers)
    app.cleanup_ctx.append(server.warm_up)
    app.add_routes(
        [
            web.get("/", server.list_page),
            web.get("/run/{name:.*}", server.run_page),
            web.get("/compare", server.compare_page),
            web.get("/live/list", server.live_list, allow_head=False),
            web.get("/live/run/{name:.*}", server.live_run, allow_head=False),
            web.get("/live/compare", server.live_compare, allow_head=False),
            web.get("/static/{name}", server.static),
            web.post("/control/{name:.*}", server.control),
        ]
    )
    return app


def serve(root: Path, port: int, console: Console) -> None:
    """Print the address and serve until Ctrl-C or SIGTERM. Of a folder on object storage, the copy on this machine is
    served, and kept like the storage meanwhile.

    ValueError if there is no such folder, the port is in use, or the token provided is too short; StorageError if the
    storage cannot be read.
    """
    token, is_own = choose_token()
    if uri_of(root):
        _follow_storage(root, console)

    def announce(address: str) -> None:
        for line in (f"runs below {shown(root)}", *opening(address, token, is_own)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    serve_with(root, port, digest_of(token), announce)


def _follow_storage(root: Path, console: Console) -> None:
    """Copy the small files of all runs, and go on from a thread."""
    runs = StoredRuns(root)
    root.mkdir(parents=True, exist_ok=True)
    with impatient():
        runs.refresh()

    def work() -> None:
        said = ""
        while True:
            time.sleep(FOLLOW_SECONDS)
            try:
                runs.refresh()
                said = ""
            except StorageError as error:
                if str(error) != said:
                    said = str(error)
                    console.print(said, markup=False, highlight=False, soft_wrap=True)

    threading.Thread(target=work, name=LOOKING, daemon=True).start()


def serve_with(root: Path, port: int, digest: str, announce: Callable[[str], None]) -> None:
    """Serve as `serve` does, knowing only the digest of the token; `announce` receives the address."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder of the runs, the output_dir of the configuration")
    asyncio.run(_serve(root, port, digest, announce))
    looking = [thread for thread in threading.enumerate() if thread.name == LOOKING]
    until = time.monotonic() + PATIENCE_SECONDS
    for thread in looking:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in looking):  # Python aborts if one is in compiled code when it ends
        sys.stdout.flush()
        os._exit(0)


async def _serve(root: Path, port: int, digest: str, announce: Callable[[str], None]) -> None:
    runner = web.AppRunner(build_app(root, digest), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            site = web.TCPSite(runner, HOST, port)
            await site.start()
        except OSError as error:
            raise ValueError(
                f"port {port} of {HOST}: {error.strerror}; choose another with --port, or 0 for any free port"
            ) from None
        announce(f"http://{HOST}:{runner.addresses[0][1]}/")
        is_over = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, is_over.set)
        await is_over.wait()
    finally:
        await runner.cleanup()


class _Server:
    def __init__(self, catalog: Catalog, digest: str) -> None:
        self.catalog, self._digest = catalog, digest
        self._pages = Pages()
        self._preparing: set[asyncio.Task[None]] = set()
        self._files = _static_files()
        self._packed: dict[str, bytes] = {}
        digests = {name: blake2b(data, digest_size=8).hexdigest() for name, (data, _) in self._files.items()}
        self._addresses = {name: f"/static/{name}?{digest}" for name, digest in digests.items()}

    async def warm_up(self, app: web.Application) -> AsyncIterator[None]:
        """Prepare what the first page needs, and the newest runs, before the first request."""
        task = asyncio.create_task(self._warm_up())
        yield
        task.cancel()

    async def _warm_up(self) -> None:
        names = await in_thread(lambda: self.catalog.newest(MAX_IDLE_PAGES))
        await self._read(names[:1])
        for name, (data, _) in self._files.items():
            self._packed[name] = await asyncio.to_thread(gzip.compress, data, 6)
        await self._read(names[1:])

    async def _read(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(UnknownRunError):  # just deleted
                await self._run(name).prepare()

    def _run(self, name: str) -> FollowedPage:
        return self._pages.get(("run", name), lambda: RunPage(self.catalog, name))

    def _comparison(self, names: Sequence[str]) -> FollowedPage:
        return self._pages.get(("compare", *names), lambda: ComparePage(self.catalog, names))

    async def list_page(self, request: web.Request) -> web.Response:
        return self._render("list.html", title="Runs", live="/live/list", scripts=("live.js", "list.js"))

    async def run_page(self, request: web.Request) -> web.Response:
        name = self._known(request.match_info["name"])
        self._prepare(self._run(name))
        live, control = (f"/{part}/{quote('' if name == ROOT else name)}" for part in ("live/run", "control"))
        scripts = ("plots.js", "live.js", "steer.js")
        return self._render("run_page.html", title=name, name=name, live=live, control=control, scripts=scripts)

    async def compare_page(self, request: web.Request) -> web.Response:
        names = self._compared(request)
        self._prepare(self._comparison(names))
        live = "/live/compare?" + "&".join(f"run={quote(name, safe='')}" for name in names)
        title = f"{len(names)} runs compared"
        return self._render("compare_page.html", title=title, live=live, scripts=("plots.js", "live.js"))

    async def live_list(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, self._pages.get("list", lambda: ListPage(self.catalog)))

    async def live_run(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, self._run(self._known(request.match_info["name"])))

    async def live_compare(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, self._comparison(self._compared(request)))

    async def control(self, request: web.Request) -> web.Response:
        """Pass a ControlRequest to the run: 202 with the id of the request, else an error message."""
        if not holds_token(request, self._digest):
            return _refused(401, "the token is missing or wrong; open the address that the server printed")
        if request.content_type != "application/json":
            return _refused(415, "the request must be JSON")
        try:
            folder = self.catalog.folder(request.match_info["name"] or ROOT)
            asked = ControlRequest.model_validate_json(await request.read())
            request_id = await in_thread(lambda: submit_request(folder, asked))
        except UnknownRunError as error:
            return _refused(404, str(error))
        except ValidationError as error:
            faults = [[*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")] for fault in error.errors()]
            return _refused(422, "; ".join(map(": ".join, faults)))
        except (ValueError, OSError) as error:
            return _refused(422, str(error))
        return web.json_response({"id": request_id}, status=202)

    async def static(self, request: web.Request) -> web.Response:
        data, content_type = self._files.get(request.match_info["name"], (b"", ""))
        if not content_type:
            raise web.HTTPNotFound(text="no such file\n")
        # The address contains a digest of the content.
        headers = {"Cache-Control": "max-age=31536000, immutable", "Vary": "Accept-Encoding"}
        packed = self._packed.get(request.match_info["name"])
        if packed is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
            data, headers["Content-Encoding"] = packed, "gzip"
        return web.Response(body=data, content_type=content_type, charset="utf-8", headers=headers)

    def _known(self, name: str) -> str:
        name = name or ROOT
        try:
            self.catalog.folder(name)
        except UnknownRunError as error:
            raise web.HTTPNotFound(text=f"{error}\n") from None
        return name

    def _compared(self, request: web.Request) -> list[str]:
        names = [self._known(name) for name in dict.fromkeys(request.query.getall("run", []))]
        if not 1 <= len(names) <= MAX_COMPARED:
            raise web.HTTPBadRequest(text=f"{len(names)} runs to compare; choose 1 to {MAX_COMPARED}\n")
        return names

    def _render(self, template: str, scripts: Sequence[str], **values: Any) -> web.Response:
        addresses = {
            "styles": [self._addresses[name] for name in ("page.css", "dashboard.css")],
            "scripts": [self._addresses[name] for name in scripts],
            "plotly": self._addresses["plotly.min.js"],
        }
        page = templates.get_template(template).render(root=self.catalog.root, **addresses, **values)
        return web.Response(text=page, content_type="text/html")

    def _prepare(self, page: FollowedPage) -> None:
        task = asyncio.create_task(page.prepare())
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _stream(self, request: web.Request, page: FollowedPage) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        messages = page.follow(BEAT_SECONDS)
        try:
            async for message in messages:
                await response.write(b": still here\n\n" if message is None else f"data: {message}\n\n".encode())
        except ConnectionError:  # the browser has closed the page
            pass
        finally:
            await messages.aclose()
        return response


def _refused(status: int, why: str) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.json_response({"error": why}, status=status, headers=headers)


def _static_files() -> dict[str, tuple[bytes, str]]:
    own = resources.files("orchestrator.dashboard").joinpath("templates")
    texts = {"plotly.min.js": get_plotlyjs(), "plots.js": asset("plots.js"), "page.css": asset("page.css")}
    texts |= {name: own.joinpath(name).read_text(encoding="utf-8") for name in _OWN}
    kinds = {".js": "text/javascript", ".css": "text/css"}
    return {name: (text.encode(), kinds[Path(name).suffix]) for name, text in texts.items()}
