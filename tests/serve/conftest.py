"""Two very small trained runs, and the application around them without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import homespun as hs
from homespun.serve.app import build
from homespun.serve.house import House
from homespun.serve.limits import Limits
from homespun.serve.served import open_runs

SMALL = ("model.width=32", "model.layers=2", "model.attention.heads=2", "model.context=64", "train.batch_tokens=128",
         "train.steps=4", "train.precision=fp32", "train.compile=off", "tokenizer.kind=bytes")  # fmt: skip
EXPERTS = ("model.feed_forward.kind=experts", "model.feed_forward.experts=4", "model.feed_forward.hidden=16",
           "model.feed_forward.dense_layers=[0]")  # fmt: skip
END = 256  # the end token's id
ON = {str(END): -100}  # as logit_bias: a text goes on until its last token


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs; the folder of the second, a mixture, has the name of the first."""
    place = tmp_path_factory.mktemp("served")
    folders = [place / "small", place / "other" / "small"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMESPUN_CACHE", str(place / "cache"))
        for folder, more in zip(folders, ((), EXPERTS), strict=True):
            hs.train("stories:40", hs.recipe("house-tiny", *SMALL, *more), out=folder)
    return folders


Client = Callable[..., TestClient]


@pytest.fixture
def client(runs: list[Path]) -> Iterator[Client]:
    """Makes a client of the application in this process: `client(limits, host=..., key=...)`."""
    open_clients: list[TestClient] = []

    def make(folders: list[Path] | None = None, limits: dict[str, Any] | None = None, **settings: Any) -> TestClient:
        chosen = Limits(**(limits or {}))
        house = House(open_runs(folders or runs, "last", None, chosen), chosen)
        made = TestClient(build(house, **settings), base_url="http://127.0.0.1")
        made.app_state["house"] = house
        open_clients.append(made)
        return made.__enter__()

    yield make
    for made in open_clients:
        made.__exit__(None, None, None)
