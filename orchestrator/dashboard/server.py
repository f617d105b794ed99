"""The server and its routes, on 127.0.0.1 only.

/                    the list            /live/list            server-sent events
/run/<name>          one run             /live/run/<name>      likewise
/compare?run=&run=   side by side        /live/compare?...     likewise
/static/<name>       scripts and styles, from installed packages
/control/<name>      POST, with the token
"""

import asyncio
import functools
import gzip
import hashlib
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web
from plotly.offline import get_plotlyjs
from rich.console import Console

from orchestrator.dashboard.catalog import ROOT, Catalog, UnknownRunError
from orchestrator.dashboard.controls import MAX_BODY_BYTES, control_handler
from orchestrator.dashboard.following import MAX_IDLE_PAGES, Pages
from orchestrator.dashboard.guard import add_headers, choose_token, digest_of, only_this_machine, opening
from orchestrator.dashboard.pages import ComparePage, ListPage, Page, RunPage, templates
from orchestrator.views.report.html import asset

HOST = "127.0.0.1"
MAX_COMPARED = 40
BEAT_SECONDS = 15.0  # so that a closed connection is noticed
_OWN = ("dashboard.css", "live.js", "list.js", "steer.js")


def build_app(root: Path, digest: str) -> web.Application:
    """The application for the runs below `root`; `digest` is that of the token for the controls."""
    server = _Server(Catalog(root))
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
            web.post("/control/{name:.*}", control_handler(server.catalog, digest)),
        ]
    )
    return app


def serve(root: Path, port: int, console: Console) -> None:
    """Print the address and serve until Ctrl-C or SIGTERM.

    Raises:
        ValueError: there is no such folder, the port is in use, or the token provided is too short.
    """
    token, is_own = choose_token()

    def announce(address: str) -> None:
        for line in (f"runs below {root}", *opening(address, token, is_own)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    serve_with(root, port, digest_of(token), announce)


def serve_with(root: Path, port: int, digest: str, announce: Callable[[str], None]) -> None:
    """Serve as `serve` does, knowing only the digest of the token; `announce` receives the address."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder of the runs, the output_dir of the configuration")
    asyncio.run(_serve(root, port, digest, announce))


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
        await _until_told_to_stop()
    finally:
        await runner.cleanup()


async def _until_told_to_stop() -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()


class _Server:
    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._pages = Pages()
        self._preparing: set[asyncio.Task[None]] = set()
        self._files = _static_files()
        self._packed: dict[str, bytes] = {}
        self._addresses = {name: f"/static/{name}?{_digest(data)}" for name, (data, _) in self._files.items()}

    async def warm_up(self, app: web.Application) -> AsyncIterator[None]:
        """Prepare what the first page needs, and the newest runs, before the first request."""
        task = asyncio.create_task(self._warm_up())
        yield
        task.cancel()

    async def _warm_up(self) -> None:
        names = await asyncio.to_thread(self.catalog.newest, MAX_IDLE_PAGES)
        await self._read(names[:1])
        for name, (data, _) in self._files.items():
            self._packed[name] = await asyncio.to_thread(gzip.compress, data, 6)
        await self._read(names[1:])

    async def _read(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(UnknownRunError):  # just deleted
                await self._pages.get(("run", name), functools.partial(RunPage, self.catalog, name)).prepare()

    async def list_page(self, request: web.Request) -> web.Response:
        scripts = ("live.js", "list.js")
        return self._render("list.html", title="Runs", live="/live/list", scripts=scripts)

    async def run_page(self, request: web.Request) -> web.Response:
        name = self._known(request.match_info["name"])
        self._prepare(("run", name), lambda: RunPage(self.catalog, name))
        live, control = (f"/{part}/{quote('' if name == ROOT else name)}" for part in ("live/run", "control"))
        scripts = ("plots.js", "live.js", "steer.js")
        return self._render("run_page.html", title=name, name=name, live=live, control=control, scripts=scripts)

    async def compare_page(self, request: web.Request) -> web.Response:
        names = self._compared(request)
        self._prepare(("compare", *names), lambda: ComparePage(self.catalog, names))
        live = "/live/compare?" + "&".join(f"run={quote(name, safe='')}" for name in names)
        title = f"{len(names)} runs compared"
        return self._render("compare_page.html", title=title, live=live, scripts=("plots.js", "live.js"))

    async def live_list(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, "list", lambda: ListPage(self.catalog))

    async def live_run(self, request: web.Request) -> web.StreamResponse:
        name = self._known(request.match_info["name"])
        return await self._stream(request, ("run", name), lambda: RunPage(self.catalog, name))

    async def live_compare(self, request: web.Request) -> web.StreamResponse:
        names = self._compared(request)
        return await self._stream(request, ("compare", *names), lambda: ComparePage(self.catalog, names))

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

    def _prepare(self, key: Any, make: Callable[[], Page]) -> None:
        task = asyncio.create_task(self._pages.get(key, make).prepare())
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _stream(self, request: web.Request, key: Any, make: Callable[[], Page]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        messages = self._pages.get(key, make).follow(BEAT_SECONDS)
        try:
            async for message in messages:
                await response.write(b": still here\n\n" if message is None else f"data: {message}\n\n".encode())
        except ConnectionError:  # the browser has closed the page
            pass
        finally:
            await messages.aclose()
        return response


def _static_files() -> dict[str, tuple[bytes, str]]:
    own = resources.files("orchestrator.dashboard").joinpath("templates")
    texts = {"plotly.min.js": get_plotlyjs(), "plots.js": asset("plots.js"), "page.css": asset("page.css")}
    texts |= {name: own.joinpath(name).read_text(encoding="utf-8") for name in _OWN}
    kinds = {".js": "text/javascript", ".css": "text/css"}
    return {name: (text.encode(), kinds[Path(name).suffix]) for name, text in texts.items()}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
