"""The server asked as a browser, or somebody worse, asks it."""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from plotly.offline import get_plotlyjs

from orchestrator.controller.operator import read_request, waiting_requests
from orchestrator.dashboard.following import Snapshot
from orchestrator.dashboard.guard import TOKEN_VARIABLE, choose_token, digest_of
from orchestrator.dashboard.pages import RunPage
from orchestrator.dashboard.server import HOST, build_app
from tests.unit.conftest import FakeRun, MakeFakeRun

TOKEN = "the-token-of-this-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAUSE = {"kind": "pause", "by": "ada"}

Talk = Callable[[ClientSession, str], Awaitable[None]]


def with_server(root: Path, talk: Talk) -> None:
    async def go() -> None:
        server = TestServer(build_app(root, digest_of(TOKEN)), host=HOST)
        await server.start_server()
        try:
            async with ClientSession() as session:
                await talk(session, str(server.make_url("")).rstrip("/"))
        finally:
            await server.close()

    asyncio.run(go())


@pytest.fixture
def live(fake_run: MakeFakeRun) -> FakeRun:
    return fake_run("live", domains=("math", "code", "law"), total_steps=100, num_steps=30, every=20)


async def first_message(session: ClientSession, address: str) -> dict[str, Any]:
    async with session.get(address) as response:
        assert response.content_type == "text/event-stream"
        return await next_message(response.content)


async def next_message(stream: Any) -> dict[str, Any]:
    async for line in stream:
        if line.startswith(b"data: "):
            return json.loads(line[6:])
    raise AssertionError("the stream ended")


def test_every_page_opens_and_runs_no_script_of_its_text(live: FakeRun, tmp_path: Path) -> None:
    async def talk(session: ClientSession, base: str) -> None:
        for path in ("/", "/run/live", "/compare?run=live"):
            async with session.get(base + path) as response:
                text = await response.text()
                assert response.status == 200, path
            policy = response.headers["Content-Security-Policy"]
            assert "script-src 'self';" in policy and "default-src 'none'" in policy and "unsafe-eval" not in policy
            assert response.headers["Cache-Control"] == "no-store"
            assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [""] * text.count("<script")
            assert not re.search(r"\son\w+=|javascript:|https?://", text)
            for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
                async with session.get(base + address) as file:
                    assert file.status == 200 and await file.read(), address
                    assert "immutable" in file.headers["Cache-Control"]

    with_server(tmp_path, talk)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", "0.0.0.0:{port}", "[::1]:{port}", ""]
)
def test_a_name_that_was_pointed_here_gets_nothing(host: str, live: FakeRun, tmp_path: Path) -> None:
    async def talk(session: ClientSession, base: str) -> None:
        headers = {"Host": host.format(port=base.rsplit(":", 1)[1])}
        for path in ("/", "/run/live", "/live/run/live", "/static/plots.js", "/nothing"):
            async with session.get(base + path, headers=headers) as response:
                assert response.status == 421 and "Runs" not in await response.text(), path
        async with session.post(f"{base}/control/live", headers=headers | BEARER, json=PAUSE) as response:
            assert response.status == 421

    with_server(tmp_path, talk)
    assert waiting_requests(live.path) == []


def test_this_machine_by_its_names_is_let_in(live: FakeRun, tmp_path: Path) -> None:
    async def talk(session: ClientSession, base: str) -> None:
        for name in ("127.0.0.1", "localhost"):
            async with session.get(base, headers={"Host": f"{name}:{base.rsplit(':', 1)[1]}"}) as response:
                assert response.status == 200

    with_server(tmp_path, talk)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Cookie": f"token={TOKEN}"},
        {**BEARER, "Origin": "https://evil.example"},
        {**BEARER, "Origin": "null"},
    ],
)
def test_no_control_acts_without_the_token(headers: dict[str, str], live: FakeRun, tmp_path: Path) -> None:
    requests: list[dict[str, Any]] = [
        {"kind": "set", "shares": {"math": 0.9}, "by": "eve"},
        {"kind": "pin", "domains": ["law"], "by": "eve"},
        {"kind": "release", "by": "eve"},
        {"kind": "pause", "by": "eve"},
        {"kind": "resume", "by": "eve"},
    ]

    async def talk(session: ClientSession, base: str) -> None:
        for request in requests:
            async with session.post(f"{base}/control/live?token={TOKEN}", headers=headers, json=request) as response:
                assert response.status == (403 if "Origin" in headers else 401)
            async with session.get(f"{base}/control/live?token={TOKEN}", headers=headers) as response:
                assert response.status in (403, 405)

    files = sorted(path.name for path in live.path.rglob("*"))
    with_server(tmp_path, talk)
    assert sorted(path.name for path in live.path.rglob("*")) == files


def test_with_the_token_a_request_reaches_the_run(live: FakeRun, tmp_path: Path) -> None:
    asked = {"kind": "pin", "shares": {"law": 0.4}, "by": "ada", "why": "exam week"}

    async def talk(session: ClientSession, base: str) -> None:
        async with session.post(f"{base}/control/live", headers=BEARER | {"Origin": base}, json=asked) as response:
            assert response.status == 202
            assert (await response.json())["id"] in waiting_requests(live.path)
        message = await first_message(session, f"{base}/live/run/live")
        assert "pin law 0.4 by ada" in message["parts"]["weights"]

    with_server(tmp_path, talk)
    (request_id,) = waiting_requests(live.path)
    assert read_request(live.path, request_id).model_dump(exclude_defaults=True) == asked


@pytest.mark.parametrize(
    ("request_", "status", "why"),
    [
        ({"kind": "set", "shares": {"cooking": 0.4}, "by": "ada"}, 422, "cooking"),
        ({"kind": "set", "shares": {"math": 1.4}, "by": "ada"}, 422, "less than or equal to 1"),
        ({"kind": "set", "shares": {"math": 0.8, "law": 0.5}, "by": "ada"}, 422, "more than 1"),
        ({"kind": "pause"}, 422, "by"),
        ({"kind": "delete", "by": "ada"}, 422, "kind"),
        ({"kind": "pause", "by": "ada", "path": "/etc"}, 422, "path"),
        ([], 422, ""),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    request_: Any, status: int, why: str, live: FakeRun, tmp_path: Path
) -> None:
    async def talk(session: ClientSession, base: str) -> None:
        async with session.post(f"{base}/control/live", headers=BEARER, json=request_) as response:
            assert response.status == status and why in (await response.json())["error"]

    with_server(tmp_path, talk)
    assert waiting_requests(live.path) == []


def test_only_json_of_a_sane_size_and_only_runs_that_still_move(
    live: FakeRun, fake_run: MakeFakeRun, tmp_path: Path
) -> None:
    fake_run("done", total_steps=20, every=20)

    async def talk(session: ClientSession, base: str) -> None:
        form = {"data": json.dumps(PAUSE), "headers": BEARER | {"Content-Type": "text/plain"}}
        huge = {"json": PAUSE | {"why": "x" * 100_000}, "headers": BEARER}
        fine = {"json": PAUSE, "headers": BEARER}
        cases: list[tuple[str, dict[str, Any], int]] = [
            ("live", form, 415),
            ("live", huge, 413),
            ("done", fine, 422),
            ("nowhere", fine, 404),
        ]
        for name, arguments, status in cases:
            async with session.post(f"{base}/control/{name}", **arguments) as response:
                assert response.status == status, name

    with_server(tmp_path, talk)
    assert waiting_requests(live.path) == []


def test_no_address_leads_out_of_the_folder(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    fake_run("runs/inside", total_steps=20, num_steps=5)
    secret = fake_run("secret", total_steps=20, num_steps=5)
    (tmp_path / "runs" / "link").symlink_to(secret.path)
    names = ["..%2Fsecret", "%2e%2e/secret", "inside%2F..%2F..%2Fsecret", "link", "%2Fetc", str(secret.path)]

    async def talk(session: ClientSession, base: str) -> None:
        from yarl import URL

        for name in names:
            addresses = [f"/{page}/{name}" for page in ("run", "live/run")]
            addresses += [f"/{page}?run={name}" for page in ("compare", "live/compare")]
            for address in [*addresses, "/static/..%2Fserver.py", "/static/%2Fetc%2Fpasswd"]:
                async with session.get(URL(base + address, encoded=True)) as response:
                    assert response.status == 404, address
            url = URL(f"{base}/control/{name}", encoded=True)
            async with session.post(url, headers=BEARER, json=PAUSE) as response:
                assert response.status == 404, name

    with_server(tmp_path / "runs", talk)
    assert waiting_requests(secret.path) == []


def test_hostile_names_are_text_in_every_page(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    hostile = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "'; {{ 1234*4321 }}")
    run = fake_run('<img src=x onerror="alert(4)">', domains=hostile, total_steps=40, num_steps=20, every=10)
    run.append("events.jsonl", {"step": 3, "kind": "<i>", "message": "<script>alert(3)</script>"})
    (run.path / "requests").mkdir()
    asked = {"kind": "set", "shares": {hostile[0]: 0.2}, "by": "<b>eve</b>", "why": "<u>"}
    (run.path / "requests" / "00000000000000000001-aaaaaaaa.json").write_text(json.dumps(asked))

    async def talk(session: ClientSession, base: str) -> None:
        name = "%3Cimg%20src=x%20onerror=%22alert(4)%22%3E"
        for address in ("/live/list", f"/live/run/{name}", f"/live/compare?run={name}"):
            message = await first_message(session, base + address)
            shown = " ".join(message["parts"].values())
            assert "&lt;img src=x onerror=" in shown
            assert not re.search(r"<(script|img|u|i>)|<b>|5332114", shown), address
            names = [trace.get("name", "") for figure in message.get("figures", []) for trace in figure["data"]]
            assert not any("<" in name for name in names)
        for address in ("/", f"/run/{name}", f"/compare?run={name}"):
            async with session.get(base + address) as response:
                assert "<img" not in await response.text() and response.status == 200

    with_server(tmp_path, talk)


def test_a_live_run_is_followed(live: FakeRun, tmp_path: Path) -> None:
    async def talk(session: ClientSession, base: str) -> None:
        async with session.get(f"{base}/live/run/live") as one, session.get(f"{base}/live/run/live") as other:
            for stream in (one, other):
                message = await next_message(stream.content)
                assert "step 30 of 100" in message["parts"]["numbers"] and message["figures"]
            live.write_steps(31, 33)
            for stream in (one, other):
                message = await next_message(stream.content)
                assert "step 33 of 100" in message["parts"]["numbers"]
                assert "figures" not in message and message["patches"]

    with_server(tmp_path, talk)


def test_one_who_comes_after_others_have_gone_is_served_too(live: FakeRun, tmp_path: Path) -> None:
    served = []

    async def talk(session: ClientSession, base: str) -> None:
        for step in (30, 31, 32):
            async with session.get(f"{base}/live/run/live") as stream, asyncio.timeout(30):
                message = await next_message(stream.content)
                while f"step {step} of 100" not in message.get("parts", {}).get("numbers", ""):
                    message = await next_message(stream.content)
            served.append(step)
            live.write_steps(step + 1, step + 1)

    with_server(tmp_path, talk)
    assert served == [30, 31, 32]


def test_a_list_is_followed_line_by_line(live: FakeRun, fake_run: MakeFakeRun, tmp_path: Path) -> None:
    fake_run("done", total_steps=20, every=20)

    async def talk(session: ClientSession, base: str) -> None:
        async with session.get(f"{base}/live/list") as stream:
            message = await next_message(stream.content)
            assert {"row:live", "row:done"} < set(message["parts"])
            live.write_steps(31, 31)
            message = await next_message(stream.content)
            assert "row:live" in message["parts"] and "row:done" not in message["parts"]

    with_server(tmp_path, talk)


def test_too_many_runs_or_none_are_not_compared(live: FakeRun, tmp_path: Path) -> None:
    async def talk(session: ClientSession, base: str) -> None:
        async with session.get(f"{base}/compare") as response:
            assert response.status == 400

    with_server(tmp_path, talk)


def test_scripts_travel_packed_to_browsers_that_can_unpack_them(live: FakeRun, tmp_path: Path) -> None:
    async def talk(session: ClientSession, base: str) -> None:
        async with session.get(base) as response:
            address = re.search(r'"(/static/plotly.min.js[^"]*)"', await response.text())[1]  # type: ignore[index]
        seen = {}
        async with asyncio.timeout(30):
            while seen.get("gzip") != "gzip":  # it is packed once the server has time
                for accepted in ("gzip", "identity"):
                    async with session.get(base + address, headers={"Accept-Encoding": accepted}) as response:
                        seen[accepted] = response.headers.get("Content-Encoding")
                        assert await response.text() == get_plotlyjs() and response.headers["Vary"]
                await asyncio.sleep(0.05)
        assert seen == {"gzip": "gzip", "identity": None}

    with_server(tmp_path, talk)


def test_the_numbers_do_not_wait_for_the_script_that_draws(live: FakeRun, tmp_path: Path) -> None:
    async def talk(session: ClientSession, base: str) -> None:
        for path in ("/run/live", "/compare?run=live"):
            async with session.get(base + path) as response:
                scripts = re.findall(r"<script ([^>]*)>", await response.text())
            ways = {"async" if " async" in script else "defer": script for script in scripts}
            assert "plotly.min.js" in ways["async"] and sum("plotly.min.js" in script for script in scripts) == 1

    with_server(tmp_path, talk)


def test_the_newest_runs_are_read_before_anybody_asks(
    fake_run: MakeFakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("oldest", "older", "newer", "newest")):
        os.utime(fake_run(name, total_steps=20, num_steps=5).path / "config.json", (1e9, 1e9 + age))
    looked: list[str] = []
    look = RunPage.look

    def noted(page: RunPage) -> Snapshot | None:
        looked.append(page._follower.run.path.name)
        return look(page)

    monkeypatch.setattr(RunPage, "look", noted)
    monkeypatch.setattr("orchestrator.dashboard.server.MAX_IDLE_PAGES", 3)

    async def talk(session: ClientSession, base: str) -> None:
        async with asyncio.timeout(30):
            while len(looked) < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # for one too many

    with_server(tmp_path, talk)
    assert looked == ["newest", "newer", "older"]


def test_the_token_is_made_or_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    (one, is_own), (other, _) = choose_token(), choose_token()
    assert is_own and one != other and len(one) >= 32
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert choose_token() == (TOKEN, False)
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ValueError, match="at least 16"):
        choose_token()
