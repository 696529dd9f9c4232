"""The server process: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from homespun.errors import ConfigError
from homespun.serve.app import build
from homespun.serve.guard import is_address, is_loopback
from homespun.serve.house import House
from homespun.serve.limits import Limits
from homespun.serve.protocol import Protocol
from homespun.serve.served import Runs
from homespun.train.guard import SignalGuard

BACKLOG = 128
SHORTEST_KEY = 16  # characters
LONGEST_KEY = 1024


def serve(
    runs: Runs,
    host: str,
    port: int,
    limits: Limits,
    key: str | None = None,
    names: Collection[str] = (),
    ready: Callable[[str], None] = lambda address: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> int:
    """Serves until a signal comes, and returns what the shell expects then: 130 for Ctrl-C, 143 for SIGTERM.

    `ready` hears the address as soon as it can be asked; `say`, that the end has begun. Raises `ConfigError` where it
    cannot listen, or must not: another host than loopback needs a key.
    """
    check_host(host, key)
    house = House(runs, limits)
    config = uvicorn.Config(
        build(house, host, names, key), host, port,
        http=functools.partial(Protocol, house=house),
        ws="none", loop="asyncio", lifespan="on", log_config=None, log_level="critical", access_log=False,
        proxy_headers=False, server_header=False, backlog=BACKLOG,
        timeout_keep_alive=limits.patience,
        timeout_graceful_shutdown=limits.grace + 2,
    )  # fmt: skip
    told = f"Stopping; what is being written has {limits.grace:g} s to end. Once more quits at once."
    with SignalGuard(lambda _: say(told)) as signals:
        Server(config, house, signals, ready).run()
    return signals.exit_code


class Server(uvicorn.Server):
    """uvicorn's server, which listens before it says so, and ends as the other verbs do."""

    def __init__(self, config: uvicorn.Config, house: House, signals: SignalGuard, ready: Callable[[str], None]):
        super().__init__(config)
        self._house, self._signals, self._ready = house, signals, ready

    async def startup(self, sockets: Any = None) -> None:
        """Listens. Raises `ConfigError` where it cannot."""
        protocol = functools.partial(
            self.config.http_protocol_class, config=self.config, server_state=self.server_state,
            app_state=self.lifespan.state,
        )  # fmt: skip
        host, port = self.config.host, self.config.port
        try:
            listening = await asyncio.get_running_loop().create_server(protocol, host, port, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(*_cannot_listen(host, port, error)) from None
        await self.lifespan.startup()
        self.servers, self.started = [listening], True
        port = listening.sockets[0].getsockname()[1]
        self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        self.should_exit |= self._signals.signal is not None
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Takes nothing new; what is not finished after the grace is told so."""
        self._house.closing = True
        asyncio.get_running_loop().call_later(self._house.limits.grace, self._house.stopped.set)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The guard around the server has them."""
        yield


def check_host(host: str, key: str | None) -> None:
    """Raises `ConfigError` where others than this machine could ask without a key."""
    if key is None and not is_loopback(host):
        raise ConfigError(
            f"Others can reach {host}, so the server needs a key there",
            "Write one into a file that only you can read, and name it with --api-key-file.",
        )


def read_key(path: Path) -> str:
    """The key in a file. Raises `ConfigError` for one that others can read, or that is none."""
    try:
        if os.name != "nt" and path.stat().st_mode & 0o077:
            raise ConfigError(f"Others can read the key file {path}", f"Close it first: chmod 600 {path}")
        with path.open("rb") as file:
            key = file.read(LONGEST_KEY + 2).strip()
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be read: {error.strerror}", "Name another one.") from None
    make = "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
    if len(key) < SHORTEST_KEY:
        raise ConfigError(f"The key in {path} is shorter than {SHORTEST_KEY} characters", make)
    if len(key) > LONGEST_KEY or not all(33 <= byte < 127 for byte in key):
        raise ConfigError(f"{path} does not hold one word of at most {LONGEST_KEY} plain letters and signs", make)
    return key.decode("ascii")


def _cannot_listen(host: str, port: int, error: OSError) -> tuple[str, str]:
    if is_address(host) or host == "localhost":
        reason = error.strerror or str(error)
        return f"Nothing can listen at {host}, port {port}: {reason}", "Choose another --port; 0 takes a free one."
    return f"Nothing can listen at {host}: it is no address of this machine", "Choose another --host."
