"""How a server starts, what it refuses to start with, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from homespun.serve.server import check_host, read_key
from tests.serve.conftest import ON
from tests.serve.process import Process, receive, request

PATH = "/v1/completions"
STREAM = {"model": "small", "prompt": "Once", "logit_bias": ON, "stream": True}


def begun(server: Process, **fields: object) -> socket.socket:
    """A stream whose first piece has come."""
    connection = server.connect()
    connection.sendall(request("POST", PATH, STREAM | fields, Connection="close"))
    received = b""
    while b"data: " not in received:
        received += connection.recv(65536)
    return connection


def last_event(connection: socket.socket) -> str:
    """The last event of a stream, when the server has closed it."""
    with connection:
        return receive(connection).decode().rpartition("data: ")[2].split("\n")[0]


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX knows them")
def test_sigterm_lets_texts_end_within_the_grace_and_tells_the_others(runs: list[Path]) -> None:
    server = Process(runs[0], "--grace", 3)
    long, short = begun(server, max_tokens=4000, n=16), begun(server, max_tokens=8)
    idle = server.connect()
    server.process.send_signal(signal.SIGTERM)
    assert last_event(short) == "[DONE]"
    error = json.loads(last_event(long))["error"]
    assert error["code"] == "server_ending" and error["type"] == "server_error"
    assert receive(idle) == b""
    assert server.process.wait(timeout=20) == 143
    said = server.end()
    assert said.startswith("Stopping; ") and said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX knows them")
def test_ctrl_c_ends_a_server_and_a_second_one_does_at_once(runs: list[Path]) -> None:
    server = Process(runs[0], "--grace", 3600)
    stream = begun(server, max_tokens=4000, n=30)
    server.process.send_signal(signal.SIGINT)
    while not server.said:
        time.sleep(0.01)
    with pytest.raises(OSError), server.connect() as late:  # it listens no more, or answers with the end
        late.sendall(request("GET", "/health"))
        raise ConnectionError(receive(late))
    assert server.process.poll() is None
    time.sleep(0.6)  # a signal that comes twice at once counts once
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=20) == -signal.SIGINT
    stream.close()
    server.end()


Serve = Callable[..., str]


@pytest.fixture
def serve(capsys: pytest.CaptureFixture[str], runs: list[Path]) -> Serve:
    """Calls `homespun serve ARGUMENTS...`, which has to be a mistake; returns what is said."""
    from homespun.cli.main import main

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            main(["serve", *map(str, arguments)])
        said = capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" not in said and said.count("\n") == 1
        return said

    return call


def test_a_port_that_is_taken(serve: Serve, runs: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = serve(runs[0], "--port", port)
    assert f"127.0.0.1, port {port}: " in said and "--port" in said
    assert not [thread for thread in threading.enumerate() if thread.name == "homespun-writer"]


def test_a_run_that_is_missing(serve: Serve, runs: list[Path], tmp_path: Path) -> None:
    assert "There is no run in" in serve(tmp_path / "none")
    assert "no checkpoint" in serve(runs[0], "--checkpoint", "77").lower()


def test_a_host_that_others_can_reach_needs_a_key(serve: Serve, runs: list[Path]) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "box.lan", ""):
        assert "needs a key" in serve(runs[0], "--host", host)
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        check_host(host, None)
    check_host("0.0.0.0", "a key")


def test_keys_that_are_none(serve: Serve, runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "key"
    assert "cannot be read" in serve(runs[0], "--api-key-file", file)
    for content in (b"", b" \n", b"too short\n", b"x" * 15):
        file.write_bytes(content)
        file.chmod(0o600)
        assert "shorter than 16" in serve(runs[0], "--api-key-file", file)
    for content in (
        b"two words that are long\n",
        b"x" * 2000,
        "schlüssel-schlüssel".encode(),
        b"line-of-words-1\nline-2",
    ):
        file.write_bytes(content)
        assert "one word" in serve(runs[0], "--api-key-file", file)
    file.write_bytes(b"0123456789abcdef\n")
    assert read_key(file) == "0123456789abcdef"


@pytest.mark.skipif(os.name == "nt", reason="modes as POSIX knows them")
def test_a_key_that_others_can_read(serve: Serve, runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"0123456789abcdef\n")
    for mode in (0o644, 0o640, 0o602):
        file.chmod(mode)
        assert "Others can read" in serve(runs[0], "--api-key-file", file)


@pytest.mark.parametrize("option", ["--max-rows", "--timeout", "--body-limit"])
def test_limits_that_are_none(serve: Serve, runs: list[Path], option: str) -> None:
    assert " = 0" in serve(runs[0], option, 0)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_packages_that_are_missing(
    serve: Serve, runs: list[Path], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith("homespun.serve.") or name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'homespun[serve]'" in serve(runs[0])
