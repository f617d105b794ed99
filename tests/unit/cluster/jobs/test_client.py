"""What the user is told about a cluster that is gone, or about something that is not one, by Ray's own job client."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import aiohttp
import pytest
import ray
import requests

from orchestrator.cluster.jobs.client import JobError, cluster_errors, connect

NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there
VERSION = f'{{"version": "4", "ray_version": "{ray.__version__}"}}'.encode()
NO_DASHBOARD = r"^http://head:8265: no Ray dashboard answers there; give --address http://HEAD:8265 of"
Reply = tuple[int, bytes]


@contextmanager
def serving(version: Reply = (200, VERSION), log: Reply | None = None) -> Iterator[str]:
    """A server that answers the version check, and the call for a log; it hangs up on the latter without an answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply = version if self.path == "/api/version" else log
            if reply is None:
                self.close_connection = True
                return
            self.send_response(reply[0])
            self.send_header("Content-Length", str(len(reply[1])))
            self.end_headers()
            self.wfile.write(reply[1])

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def follow_log(url: str) -> None:
    async def read() -> None:
        async for _ in connect(url).tail_job_logs("job"):
            pass

    asyncio.run(read())


def test_nothing_listens() -> None:
    with pytest.raises(JobError, match=NO_DASHBOARD) as caught, cluster_errors("http://head:8265"):
        connect(NOBODY)
    assert type(caught.value.__cause__) is ConnectionError


@pytest.mark.parametrize("reply", [(200, b"<html>a page</html>"), (502, b"bad gateway")], ids=["a page", "a proxy"])
def test_something_else_answers(reply: Reply) -> None:
    """The version check hands on what requests raises, except for a connection that fails."""
    with (
        serving(version=reply) as url,
        pytest.raises(JobError, match=NO_DASHBOARD) as caught,
        cluster_errors("http://head:8265"),
    ):
        connect(url)
    assert isinstance(caught.value.__cause__, requests.RequestException)


def test_the_cluster_goes_away_between_two_calls() -> None:
    with serving() as url:
        client = connect(url)
    with pytest.raises(JobError, match=NO_DASHBOARD) as caught, cluster_errors("http://head:8265"):
        client.list_jobs()
    assert isinstance(caught.value.__cause__, requests.ConnectionError)


@pytest.mark.parametrize(
    ("reply", "error"),
    [(None, aiohttp.ServerDisconnectedError), ((502, b"bad gateway"), aiohttp.WSServerHandshakeError)],
    ids=["hangs up", "a proxy"],
)
def test_the_cluster_goes_away_when_a_log_is_to_be_followed(reply: Reply | None, error: type[Exception]) -> None:
    """Neither error is an OSError, unlike that of a connection that is refused."""
    with (
        serving(log=reply) as url,
        pytest.raises(JobError, match=NO_DASHBOARD) as caught,
        cluster_errors("http://head:8265"),
    ):
        follow_log(url)
    assert isinstance(caught.value.__cause__, error) and not isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(("status", "fault"), [(401, "a token is required"), (403, "the token is wrong")])
def test_the_cluster_asks_for_a_token(status: int, fault: str) -> None:
    with (
        serving(version=(status, b"{}")) as url,
        pytest.raises(JobError, match=rf"^http://head:8265: {fault}; set RAY_AUTH_MODE=token"),
        cluster_errors("http://head:8265"),
    ):
        connect(url)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "data/a.json"), PermissionError("not yours")])
def test_a_fault_of_our_own_files_is_not_taken_for_a_missing_cluster(error: OSError) -> None:
    """The folder that travels with a job is written while `cluster_errors` is in force."""
    with pytest.raises(type(error)) as caught, cluster_errors("http://head:8265"):
        raise error
    assert caught.value is error
