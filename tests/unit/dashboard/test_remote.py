"""What the cluster is told of a dashboard that runs there, and what a person is told."""

import shlex
from pathlib import Path

import pytest

from orchestrator.dashboard.guard import TOKEN_VARIABLE, digest_of
from orchestrator.dashboard.remote import LISTENS, directions, entrypoint

TOKEN = "a-token-that-stays-at-home"


def test_only_a_digest_of_the_token_travels() -> None:
    command = shlex.split(entrypoint(Path("/data/my runs"), 8275, TOKEN))
    assert command[-5:] == ["-m", "orchestrator.dashboard.remote", "/data/my runs", "8275", digest_of(TOKEN)]
    assert TOKEN not in " ".join(command)


@pytest.mark.parametrize(
    ("address", "head"),
    [
        ("http://head.example:8265", "head.example"),
        ("https://10.0.0.7:8265/", "10.0.0.7"),
        ("http://localhost:8265", "HEAD"),
        ("http://127.0.0.1:8265", "HEAD"),
        ("http://[::1]:8265", "HEAD"),
        ("head.example:8265", "HEAD"),
    ],
)
def test_a_person_is_told_how_to_get_there(address: str, head: str) -> None:
    told = directions(9000, address, TOKEN, is_own=True)
    assert told == [
        f"ssh -N -L 9000:127.0.0.1:9000 {head}",
        "or: kubectl port-forward pod/HEAD_POD 9000",
        f"http://127.0.0.1:9000/#token={TOKEN}",
        "this link includes the controls; press Ctrl-C to stop",
    ]


def test_a_token_that_was_given_is_not_repeated() -> None:
    told = "\n".join(directions(9000, "http://head:8265", TOKEN, is_own=False))
    assert TOKEN not in told and TOKEN_VARIABLE in told and "http://127.0.0.1:9000/\n" in told


def test_the_servers_own_line_is_known_among_others() -> None:
    assert LISTENS.fullmatch("http://127.0.0.1:8275/")[1] == "8275"  # type: ignore[index]
    assert not LISTENS.fullmatch("see http://127.0.0.1:8275/") and not LISTENS.fullmatch("http://elsewhere:8275/")
