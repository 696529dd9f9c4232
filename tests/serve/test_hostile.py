"""A server that its clients mean ill with: it stays up, tells what is wrong, and gives everything back."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import ON
from tests.serve.process import Process, receive, request

KEY = "0123456789abcdef-key"
PATIENCE = 1.0  # seconds
CONNECTIONS = 40
BODY = 20_000  # bytes
WORD = "unutterable"

LONG = {"model": "small", "prompt": WORD, "max_tokens": 4000, "logit_bias": ON}
SHORT = {"model": "small", "prompt": WORD, "max_tokens": 2}
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    process = Process(
        runs[0], "--api-key-file", file, "--client-timeout", PATIENCE, "--connections", CONNECTIONS,
        "--body-limit", BODY, "--max-rows", 4, "--queue", 8, "--grace", 0, key=KEY,
    )  # fmt: skip
    yield process
    said = process.end()
    assert said.startswith("Stopping; ") and said.count("\n") == 1


@pytest.fixture(autouse=True)
def still_well(server: Process) -> Iterator[None]:
    """After every test nothing runs any more, no connection is left, and a request is answered."""
    yield
    server.wait_for("homespun_connections", lambda open_ones: open_ones == 1)
    server.wait_for("homespun_running", lambda running: running == 0)
    assert status(ask(server, request("POST", PATH, SHORT, KEY, Connection="close"))) == 200


def ask(server: Process, data: bytes) -> bytes:
    """What comes back until the server closes."""
    with server.connect() as connection:
        with contextlib.suppress(OSError):  # it may close before all is sent
            connection.sendall(data)
        return receive(connection)


def status(answer: bytes) -> int:
    """The status of an answer as it comes over the wire."""
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> Any:
    """The error in an answer as it comes over the wire."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("key", [None, "", "x", KEY + "x", KEY[:-1]])
@pytest.mark.parametrize("path", ["/", "/metrics", "/v1/models", "/v1/runs", PATH, "/nonsense"])
def test_a_wrong_key_opens_nothing(server: Process, path: str, key: str | None) -> None:
    answer = ask(server, request("POST", path, SHORT, key, Connection="close"))
    assert status(answer) == 401 and error(answer)["code"] == "invalid_api_key"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "10.0.0.1"])
def test_a_foreign_host_is_refused(server: Process, host: str) -> None:
    assert status(ask(server, request("GET", "/health", Host=host, Connection="close"))) == 421
    assert status(ask(server, request("GET", "/health", Origin=f"http://{host}", Connection="close"))) == 403


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"\r\n" * 3 + b"\0\0\0",
     b"GET /health HTTP/1.1\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
     request("POST", PATH, b"no length\r\n", KEY, Content_Length="", Transfer_Encoding="chunked")],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_what_is_no_request_is_told_so(server: Process, data: bytes) -> None:
    answer = ask(server, data)
    assert status(answer) in (400, 501) and error(answer)["code"] == "invalid_http"


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Y: z\r\n" * 5000 + b"\r\n",
     b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_a_head_that_is_too_large_is_refused(server: Process, data: bytes) -> None:
    answer = ask(server, data)
    assert not answer or status(answer) in (400, 431) and error(answer)["code"] in ("invalid_http", "head_too_large")


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff", b"[" * 10_000, b'{"model": 1e999}', b'{"max_tokens": ' + b"9" * 5000 + b"}", b'{"n": NaN}', b"",
     json.dumps(SHORT | {"max_tokens": 10**18}).encode(), json.dumps(SHORT | {"stop": ["x"] * 1000}).encode(),
     json.dumps(SHORT | {"prompt": [10**20]}).encode(), json.dumps(SHORT | {"prompt": "\ud800"}).encode(),
     json.dumps(SHORT | {"logit_bias": {"9" * 9: 1}}).encode()],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_broken_bodies_are_mistakes_and_no_faults(server: Process, body: bytes) -> None:
    answer = ask(server, request("POST", PATH, body, KEY, Connection="close"))
    assert status(answer) == 400 and error(answer)["type"] == "invalid_request_error"
    assert WORD.encode() not in answer


def test_a_body_that_is_too_large_is_not_read(server: Process) -> None:
    declared = ask(server, request("POST", PATH, b" " * (BODY + 1), KEY, Connection="close"))
    assert status(declared) == 413
    head = request("POST", PATH, None, KEY, Content_Length="", Transfer_Encoding="chunked", Connection="close")
    assert status(ask(server, head + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 10 + b"0\r\n\r\n")) == 413
    before = server.metric("process_resident_memory_bytes")
    endless = request("POST", PATH, None, KEY, Content_Length=str(10**12))
    with server.connect() as connection:
        connection.sendall(endless)
        with pytest.raises(OSError):  # it is cut off
            for _ in range(2000):
                connection.sendall(b" " * 65536)
    assert server.metric("process_resident_memory_bytes") - before < 30e6


def test_a_client_that_is_slow_to_ask_is_cut_off(server: Process) -> None:
    whole = request("POST", PATH, SHORT, KEY)
    head = whole.index(b"\r\n\r\n") + 4
    for first, step in ((0, 5), (head, 1)):  # a head that drips, and a body that does
        with server.connect() as connection:
            began = time.monotonic()
            with contextlib.suppress(OSError):
                connection.sendall(whole[:first])
                for start in range(first, len(whole), step):
                    connection.sendall(whole[start : start + step])
                    time.sleep(0.05 if step == 1 else 0.2)
                    if time.monotonic() - began > 3 * PATIENCE:
                        break
            answer = receive(connection)
            assert not answer if first == 0 else status(answer) == 408


def test_a_client_that_says_nothing_is_cut_off(server: Process) -> None:
    with server.connect() as silent, server.connect() as kept:
        kept.sendall(request("GET", "/health"))
        answer = b""
        while b'"status"' not in answer:
            answer += kept.recv(65536)
        assert status(answer) == 200
        assert receive(silent) == b"" and receive(kept) == b""


def test_a_client_that_does_not_read_is_cut_off(server: Process) -> None:
    before = server.metric("process_resident_memory_bytes")
    cancelled = server.metric("homespun_cancelled_total")
    asked = LONG | {"stream": True, "n": 4, "logprobs": 20}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request("POST", PATH, asked, KEY))
        server.wait_for("homespun_cancelled_total", lambda count: count == cancelled + 4)
        assert server.metric("process_resident_memory_bytes") - before < 100e6
        server.wait_for("homespun_connections", lambda open_ones: open_ones == 1)


def test_more_requests_than_there_is_room_for_are_told_to_come_again(server: Process) -> None:
    answers: list[bytes] = []
    texts = LONG | {"max_tokens": 150}
    threads = [
        threading.Thread(
            target=lambda: answers.append(ask(server, request("POST", PATH, texts, KEY, Connection="close")))
        )
        for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [status(answer) for answer in answers]
    assert len(counts) == 30 and set(counts) == {200, 429} and counts.count(200) >= 12
    assert all(b"retry-after" in answer for answer in answers if status(answer) == 429)


def test_more_connections_than_there_is_room_for_are_told_so(server: Process) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(server.connect())
        answer = ask(server, request("GET", "/health", Connection="close"))
        assert status(answer) == 503 and error(answer)["code"] == "too_many_connections"
        for _ in range(60):
            stack.enter_context(server.connect())  # more than it keeps: closed at once
    server.wait_for("homespun_connections", lambda open_ones: open_ones == 1)


def test_requests_in_one_packet_are_answered_in_order(server: Process) -> None:
    both = request("GET", "/v1/models", None, KEY) + request("GET", "/health", None, KEY, Connection="close")
    answer = ask(server, both)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b'"object":"list"') < answer.index(b'"status":"ok"')


def test_a_client_that_leaves_is_noticed_behind_what_it_sent_ahead(server: Process) -> None:
    cancelled = server.metric("homespun_cancelled_total")
    for _ in range(4):
        with server.connect() as connection:
            connection.sendall(request("POST", PATH, LONG, KEY))
            server.wait_for("homespun_running", lambda running: running == 1)
            for _ in range(3):
                connection.sendall(request("GET", "/health", None, KEY) * 20)
                time.sleep(0.02)
        server.wait_for("homespun_running", lambda running: running == 0)
    assert server.metric("homespun_cancelled_total") == cancelled + 4


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2f..%2fapp.py", "//etc/passwd", "/static//etc/passwd", "/%00", "/static/%ff",
     "/static/%2e%2e/%2e%2e/app.py", "/v1/runs/../metrics", "/v1/runs/small/..%2frecipe.yaml",
     "/v1/runs/%2e%2e/metrics", "http://evil.example/health"],
)  # fmt: skip
def test_no_path_leads_out(server: Process, path: str) -> None:
    answer = ask(server, request("GET", path, None, KEY, Connection="close"))
    assert status(answer) in (400, 404) and b"root:" not in answer


def test_a_hundred_clients_that_leave_leave_nothing_behind(server: Process) -> None:
    def measure() -> dict[str, float]:
        server.wait_for("homespun_connections", lambda open_ones: open_ones == 1)
        names = (
            "process_threads",
            "process_open_fds",
            "process_resident_memory_bytes",
            "homespun_written_tokens_total",
        )
        return {name: server.metric(name) for name in names}

    def leave(stream: bool) -> None:
        with server.connect() as connection:
            connection.sendall(request("POST", PATH, LONG | {"stream": stream}, KEY))
            if stream:
                for _ in range(3):
                    assert connection.recv(1024)
            else:
                server.wait_for("homespun_running", lambda running: running > 0)

    leave(True)  # what is made once is made
    leave(False)
    server.wait_for("homespun_running", lambda running: running == 0)
    before, cancelled = measure(), server.metric("homespun_cancelled_total")
    for number in range(100):
        leave(number % 2 == 0)
        server.wait_for("homespun_running", lambda running: running == 0)
    after = measure()
    assert server.metric("homespun_cancelled_total") == cancelled + 100
    assert after["process_threads"] <= before["process_threads"]  # threads that are idle end by themselves
    assert after["process_open_fds"] <= before["process_open_fds"]
    assert after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"] < 20e6
    assert after["homespun_written_tokens_total"] - before["homespun_written_tokens_total"] < 100 * 400
