"""A name on the hub that cannot be read is told in one line, within seconds, whatever the network does."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.runs import ROOT, write_byte_tokenizer, write_run
from tests.soak import few

CLOSED, NO_NAME = "http://127.0.0.1:9", "http://hub.invalid"  # discard, where nothing listens; a name of no machine
SECONDS = 12  # of which Python and its libraries take some; the libraries alone try for 26 and more
ASK = """
import json, sys, time
from workers.hub import reach_hub
for kind, name, revision in json.loads(sys.argv[1]):
    began = time.monotonic()
    try:
        said = f"NOTE {reach_hub(kind, name, revision)}"
    except ValueError as error:
        said = f"ERROR {error}"
    print(json.dumps([said, time.monotonic() - began]))
"""


class Answers(BaseHTTPRequestHandler):
    """A hub that says of a name what the name says."""

    def do_HEAD(self) -> None:
        """The status and the hub's own header for it."""
        known = {
            "open": (200, None), "gated": (403, "GatedRepo"), "missing": (401, "RepoNotFound"), "bare": (404, None),
            "renamed": (404, "RepoNotFound"), "rev": (404, "RevisionNotFound"), "empty": (404, "EntryNotFound"),
            "busy": (429, None), "broken": (503, None),
        }  # fmt: skip
        status, code = next(answer for word, answer in known.items() if f"/{word}/" in self.path)
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 200:
            self.send_header("ETag", '"0"')
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def environment(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    proxies = {name: "" for name in kept if name.lower().endswith("_proxy")}
    return {**kept, **proxies, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **more}


def ask(home: Path, endpoint: str, *questions: tuple[str, str, str | None], **more: str) -> list[tuple[str, float]]:
    """What is said to each (kind, name, revision), and the seconds that it took; one process asks them all."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(questions)],
        env=environment(home, endpoint, **more), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return [(said, seconds) for said, seconds in map(json.loads, done.stdout.splitlines())]


@pytest.mark.parametrize(
    ("fault", "kind"), few(itertools.product(["closed", "no name", "silent"], ["model", "dataset"]), 3)
)
def test_a_hub_that_does_not_answer(tmp_path: Path, kind: str, fault: str) -> None:
    with silent_server() as silent:
        endpoint = {"closed": CLOSED, "no name": NO_NAME, "silent": silent}[fault]
        ((said, seconds),) = ask(tmp_path, endpoint, (kind, "someone/something", None))
    words = "does not answer within 5 s" if fault == "silent" else "cannot be reached ("
    assert said.startswith(f"ERROR the {'model' if kind == 'model' else 'data set'} 'someone/something' cannot be read")
    assert f"the hub ({endpoint}) {words}" in said and "give a local folder" in said
    assert ("there is no folder of that name in /" in said) == (kind == "model")
    assert seconds < SECONDS


REFUSED = {
    "gated": "is gated: accept its terms at ",
    "missing": "has no {kind} 'o/missing' that you may see; fix the name",
    "renamed": "has no {kind} 'o/renamed' that you may see; fix the name",
    "rev": "the {kind} 'o/rev' has no revision 'v9' on the hub",
    "busy": "answers with status 429",
    "broken": "answers with status 503",
}


@pytest.mark.parametrize(("kind", "called"), [("model", "model"), ("dataset", "data set")])
def test_what_the_hub_refuses(tmp_path: Path, hub: str, kind: str, called: str) -> None:
    questions = [(kind, f"o/{name}", "v9" if name == "rev" else None) for name in REFUSED]
    answers = ask(tmp_path, hub, *questions)
    for (said, _), words in zip(answers, REFUSED.values(), strict=True):
        assert said.startswith("ERROR") and words.format(kind=called) in said


def test_what_the_hub_has(tmp_path: Path, hub: str) -> None:
    names = (("model", "o/open"), ("dataset", "o/open"), ("dataset", "o/empty"), ("model", "o/empty"))
    *fine, (empty, _) = ask(tmp_path, hub, *((kind, name, None) for kind, name in names))
    assert [said for said, _ in fine] == ["NOTE None"] * 3  # of a data set without a README.md too
    assert "has no config.json on the hub" in empty


def test_a_name_that_can_be_none(tmp_path: Path, hub: str) -> None:
    names = ("o/a model", "a/b/c")
    answers = ask(tmp_path, hub, *(("model", name, None) for name in names))
    for name, (said, _) in zip(names, answers, strict=True):
        assert said.startswith(f"ERROR the model {name!r} is neither a folder on this machine nor a name on the hub")


def test_offline_by_the_user_s_wish_asks_nobody(tmp_path: Path) -> None:
    question = ("model", "o/m", None)
    ((said, seconds),) = ask(tmp_path, CLOSED, question, HF_HUB_OFFLINE="1")
    assert "is not in the local cache" in said and "HF_HUB_OFFLINE forbids asking the hub" in said and seconds < SECONDS
    write_snapshot(tmp_path)
    assert ask(tmp_path, CLOSED, question, HF_HUB_OFFLINE="1")[0][0] == "NOTE None"


def test_without_an_answer_the_cache_is_used_and_that_is_told(tmp_path: Path) -> None:
    write_snapshot(tmp_path)
    (said, seconds), (other, _) = ask(tmp_path, CLOSED, ("model", "o/m", None), ("model", "o/m", "another-revision"))
    assert said.startswith(f"NOTE the hub ({CLOSED}) cannot be reached") and "are taken from the local cache" in said
    assert seconds < SECONDS and "cannot be read" in other


def write_snapshot(home: Path, vocab_size: int = 300) -> Path:
    """A model in the hub's cache, as a download leaves it."""
    place = home / "hub" / "models--o--m"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": vocab_size, "hidden_size": 8, "intermediate_size": 8,
                    "num_hidden_layers": 1, "num_attention_heads": 1})
    )  # fmt: skip
    write_byte_tokenizer(snapshot)
    return snapshot


CHECK = """
import atexit, sys
from orchestrator.cli.main import main
atexit.register(lambda: print("torch was imported:", "torch" in sys.modules))
main()
"""


def check(file: Path, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHECK, "check", str(file)]
    return subprocess.run(command, env=environment(home, endpoint), capture_output=True, text=True, timeout=110)


@pytest.mark.parametrize("changes", [{"model": {"path": "o/m"}}, {"domains__law": {"hub": {"path": "o/rows"}}}])
def test_the_command_says_it_in_a_line(tmp_path: Path, changes: dict[str, object]) -> None:
    done = check(write_run(tmp_path, **changes), tmp_path / "home", CLOSED)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    key = "model.path" if "model" in changes else "domain 'law'"
    assert done.stderr.startswith(f"raymix: {key}: the ") and f"the hub ({CLOSED}) cannot be reached" in done.stderr
    assert done.stdout.endswith("torch was imported: False\n")


def test_a_run_on_the_cache_alone_goes_on(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "home")
    file = write_run(tmp_path, model={"path": "o/m", "dtype": "float32"})
    assert yaml.safe_load(file.read_text())["model"]["path"] == "o/m"
    done = check(file, tmp_path / "home", CLOSED)
    assert done.returncode == 0, done.stderr
    assert "are taken from the local cache" in done.stdout.replace("\n", " ") and "30 steps" in done.stdout


def test_ids_beyond_what_the_configuration_of_a_hub_model_says_are_an_error_of_check(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "home", vocab_size=200)  # no weights in the cache, whose embedding would say it
    done = check(write_run(tmp_path, model={"path": "o/m", "dtype": "float32"}), tmp_path / "home", CLOSED)
    assert done.returncode == 1, done.stdout
    assert "model.path: the model has embeddings for the token ids 0 to 199, but domain 'add' has 201 (" in done.stderr
