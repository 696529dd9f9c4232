"""A server in a process of its own, as its users start it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any


class Process:
    """`homespun serve` on a free port of loopback."""

    def __init__(self, *arguments: object, key: str | None = None):
        self.key = key
        command = [sys.executable, "-m", "homespun", "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.said: list[str] = []
        self._listener = threading.Thread(target=self._listen, args=[self.process.stderr], daemon=True)
        self._listener.start()
        self.told = []
        for line in self.process.stdout:
            self.told.append(line)
            if line.startswith("Ctrl-C"):
                break
        assert self.told and self.told[0].startswith("Listening at "), (self.told, self.said)
        self.address = self.told[0].split()[-1]
        self.port = int(self.address.rpartition(":")[2])

    def _listen(self, stream: Any) -> None:
        self.said.extend(stream)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def get(self, path: str) -> bytes:
        """The body of a GET that succeeds."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers), timeout=20) as answer:
            body: bytes = answer.read()
            return body

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics").decode(), re.MULTILINE)
        return sum(map(float, values))

    def wait_for(self, name: str, right: Callable[[float], bool]) -> float:
        """Waits until a metric is right."""
        value = float("nan")
        for _ in range(2000):
            with contextlib.suppress(ConnectionError, urllib.error.HTTPError):  # too many may be open still
                value = self.metric(name)
            if right(value):
                return value
            time.sleep(0.01)
        raise AssertionError(f"{name} stays at {value}")

    def end(self) -> str:
        """Stops it, and gives all that it said to standard error."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=30)
        self._listener.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return "".join(self.said)


def request(method: str, path: str, body: Any = None, key: str | None = None, **headers: str) -> bytes:
    """A request as it goes over the wire; `body` becomes JSON unless it is bytes."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(data))}
    if key is not None:
        told["Authorization"] = f"Bearer {key}"
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def receive(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass  # closed while we still sent
    return b"".join(parts)
