"""The endpoint judge against a real HTTP server: what it sends, what it makes of answers, failures and garbage."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.detection import EndpointJudgeConfig
from orchestrator.prepare.detection.judges import JudgeAnswer, JudgeContext
from orchestrator.prepare.detection.judges.base import Memory, parsed
from orchestrator.prepare.detection.judges.endpoint import EndpointError, EndpointJudge

DOMAINS = ("law", "computer_code", "Medicine")
KEY = "sk-very-secret-0123"
Reply = tuple[int, bytes, dict[str, str]]


def says(content: Any, tokens: tuple[int, int] = (10, 2)) -> Reply:
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    body = {"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage}
    return 200, json.dumps(body).encode(), {}


class Endpoint:
    """A server on this machine; `reply` makes an answer of a text and the number of times it was asked about it."""

    def __init__(self, reply: Callable[[str, int], Reply]) -> None:
        self.reply = reply
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.num_open = self.most_open = 0
        self.lock = threading.Lock()
        self.url = ""

    def texts(self) -> list[str]:
        return [text_of(question) for question in self.questions]


def text_of(question: dict[str, Any]) -> str:
    content: str = question["messages"][1]["content"]
    return content.partition("\nText:\n")[2].rpartition("\n\nWhich one")[0]


@contextmanager
def serving(reply: Callable[[str, int], Reply]) -> Iterator[Endpoint]:
    endpoint = Endpoint(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = text_of(question)
            with endpoint.lock:
                num_before = endpoint.texts().count(text)
                endpoint.questions.append(question)
                endpoint.headers.append(dict(self.headers))
                endpoint.paths.append(self.path)
                endpoint.num_open += 1
                endpoint.most_open = max(endpoint.most_open, endpoint.num_open)
            status, body, headers = endpoint.reply(text, num_before)
            with endpoint.lock:
                endpoint.num_open -= 1
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


def make_judge(endpoint: Endpoint, **changes: Any) -> EndpointJudge:
    settings: dict[str, Any] = {
        "base_url": endpoint.url,
        "model": "judge-1",
        "max_pause_seconds": 0.01,
        "api_key_env": None,
    } | changes
    return EndpointJudge(EndpointJudgeConfig(**settings), JudgeContext(DOMAINS, dict))


def ask(endpoint: Endpoint, texts: list[str], **changes: Any) -> list[JudgeAnswer]:
    by_index = dict(make_judge(endpoint, **changes).answers(texts))
    return [by_index[index] for index in range(len(texts))]


def test_it_asks_for_one_domain_of_the_closed_list() -> None:
    with serving(lambda text, num_before: says("law")) as endpoint:
        ask(endpoint, ["the party of the first part"])
    (question,) = endpoint.questions
    assert endpoint.paths == ["/v1/chat/completions"]
    assert question["model"] == "judge-1" and question["temperature"] == 0
    content = question["messages"][1]["content"]
    assert all(f"- {name}\n" in content for name in DOMAINS) and "the party of the first part" in content
    assert content.endswith("? Answer with its name only.")
    assert "Authorization" not in endpoint.headers[0]


def test_names_count_whatever_their_case_and_marks_and_nothing_else_does() -> None:
    spoken = {
        "a": "law",
        "b": " **Law.**\n",
        "c": "COMPUTER CODE",
        "d": "computer-code",
        "e": "medicine",
        "f": "The topic is law.",
        "g": "law, medicine",
        "h": "",
        "i": None,
        "j": "physics",
        "k": 7,
    }
    with serving(lambda text, num_before: says(spoken[text])) as endpoint:
        answers = ask(endpoint, list(spoken))
    chosen = [answer.probabilities and answer.probabilities.index(1.0) for answer in answers]
    assert chosen == [0, 0, 1, 1, 2, None, None, None, None, None, None]
    assert "The topic is law." in answers[5].note
    answers_ND, kept_N = parsed(answers)
    assert answers_ND.sum(axis=0).tolist() == [2.0, 2.0, 1.0] and kept_N.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "body", [b"<html>oops</html>", b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": "law"}]}', b"null"]
)
def test_garbage_is_unparsed(body: bytes) -> None:
    with serving(lambda text, num_before: (200, body, {})) as endpoint:
        (answer,) = ask(endpoint, ["a"])
    assert answer.probabilities is None and answer.note.startswith("not a chat answer")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    with serving(lambda text, n: says("law") if n == 2 else (status, b"busy", {})) as endpoint:
        (answer,) = ask(endpoint, ["a"])
    assert answer.probabilities == (1.0, 0.0, 0.0) and len(endpoint.questions) == 3


def test_the_pause_that_the_server_names_is_kept() -> None:
    with serving(lambda text, n: says("law") if n else (429, b"", {"Retry-After": "0.7"})) as endpoint:
        started = time.monotonic()
        ask(endpoint, ["a"], max_pause_seconds=5.0)
    assert time.monotonic() - started >= 0.7  # the first pause of its own is at most 0.5


def test_a_server_that_stays_busy_ends_it_and_says_so() -> None:
    with serving(lambda text, n: (429, b"slow down", {})) as endpoint, pytest.raises(EndpointError, match="HTTP 429"):
        ask(endpoint, ["a"], max_attempts=3)
    assert len(endpoint.questions) == 3


def test_a_refused_connection_ends_it_and_says_so() -> None:
    with serving(lambda text, n: says("law")) as endpoint:
        pass
    with pytest.raises(EndpointError, match="no answer"):
        ask(endpoint, ["a"], max_attempts=2)


def test_a_server_that_takes_longer_than_the_timeout_is_asked_again() -> None:
    answer_now = threading.Event()

    def slow_at_first(text: str, num_before: int) -> Reply:
        answer_now.wait(0 if num_before else 10)
        return says("law")

    with serving(slow_at_first) as endpoint:
        (answer,) = ask(endpoint, ["a"], timeout_seconds=0.3)
        answer_now.set()
    assert answer.probabilities == (1.0, 0.0, 0.0) and len(endpoint.questions) == 2


@pytest.mark.parametrize(
    ("headers", "error"),
    [({"Content-Length": "9"}, "RemoteProtocolError"), ({"Content-Encoding": "gzip"}, "DecodingError")],
    ids=["cut off", "not gzip"],
)
def test_a_damaged_answer_is_asked_for_again(headers: dict[str, str], error: str) -> None:
    with serving(lambda text, n: says("law") if n else (200, b"{}", headers)) as endpoint:
        (answer,) = ask(endpoint, ["a"])
        assert answer.probabilities == (1.0, 0.0, 0.0) and len(endpoint.questions) == 2
        with pytest.raises(EndpointError, match=rf"no answer \({error}\), at each of 1 attempts"):
            ask(endpoint, ["b"], max_attempts=1)


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_a_server_that_refuses_for_good_is_not_asked_again(status: int) -> None:
    with serving(lambda text, n: (status, b"no", {"Location": "http://127.0.0.1:1/"})) as endpoint:
        with pytest.raises(EndpointError, match=f"HTTP {status}"):
            ask(endpoint, ["a"])
        assert len(endpoint.questions) == 1


def test_a_refused_text_is_unparsed_and_the_others_go_on() -> None:
    with serving(lambda text, n: (400, b"too long", {}) if text == "b" else says("law")) as endpoint:
        answers = ask(endpoint, ["a", "b", "c"])
    assert [answer.probabilities is None for answer in answers] == [False, True, False]
    assert answers[1].note == "HTTP 400: too long"


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    reply = {"a": says("law"), "b": (400, f"bad text for {KEY}".encode(), {}), "c": (401, f"wrong {KEY}".encode(), {})}
    with serving(lambda text, n: reply[text]) as endpoint:
        memory = Memory(make_judge(endpoint, api_key_env="JUDGE_KEY", concurrency=1), tmp_path / "answers.jsonl")
        with pytest.raises(EndpointError) as error:
            memory.ask(["a", "b", "c"])
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    written = "".join(path.read_text() for path in tmp_path.rglob("*"))
    assert "bad text for ***" in written and KEY not in written + str(error.value)


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with serving(lambda text, n: says("law")) as endpoint, pytest.raises(EndpointError, match="JUDGE_KEY is not set"):
        ask(endpoint, ["a"], api_key_env="JUDGE_KEY")


def test_no_more_requests_at_once_than_allowed() -> None:
    def slow(text: str, num_before: int) -> Reply:
        time.sleep(0.02)
        return says("law")

    with serving(slow) as endpoint:
        ask(endpoint, [str(number) for number in range(30)], concurrency=3)
    assert 1 < endpoint.most_open <= 3


def test_what_was_answered_before_a_failure_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    texts = [f"text {number}" for number in range(12)]
    is_down = True

    def reply(text: str, num_before: int) -> Reply:
        return (403, b"no credit", {}) if is_down and text == texts[8] else says("law", (100, 3))

    with serving(reply) as endpoint:
        with pytest.raises(EndpointError):
            Memory(make_judge(endpoint, concurrency=1), path).ask(texts)
        num_answered = path.read_text().count("\n")
        assert num_answered == 8
        path.write_bytes(path.read_bytes() + b'{"text": "half a li')
        is_down = False
        endpoint.questions.clear()
        memory = Memory(make_judge(endpoint, concurrency=1), path)
        answers = memory.ask(texts)
        assert endpoint.texts() == texts[8:]
        assert memory.num_tokens == (1200, 36)  # those of the first attempt included
        endpoint.questions.clear()
        assert Memory(make_judge(endpoint), path).ask(texts) == answers and endpoint.questions == []


def test_equal_and_blank_texts_cost_nothing(tmp_path: Path) -> None:
    with serving(lambda text, n: says("Medicine")) as endpoint:
        answers = Memory(make_judge(endpoint), tmp_path / "answers.jsonl").ask(["a", " \n", "a", ""])
        assert len(endpoint.questions) == 1
    assert answers[0] == answers[2] and answers[1].note == answers[3].note == "empty text"


def test_only_so_much_of_a_text_is_sent() -> None:
    with serving(lambda text, n: says("law")) as endpoint:
        ask(endpoint, ["x" * 5000], max_text_characters=100)
    assert endpoint.texts() == ["x" * 100]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/v1",
        "localhost:8000",
        "http://",
        "https://user:pw@host/v1",
        "http://h/v1?key=1",
    ],
)
def test_only_plain_web_addresses_are_taken(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        EndpointJudgeConfig(base_url=url, model="m")


def test_names_that_answers_could_not_tell_apart_are_refused() -> None:
    config = EndpointJudgeConfig(base_url="http://h/v1", model="m")
    with pytest.raises(ValueError, match="differ only in case or marks"):
        EndpointJudge(config, JudgeContext(("law", "Law"), dict))
