"""A command line to call, and a very small trained run to call it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SMALL = ("--recipe", "house-tiny", "model.width=32", "model.layers=1", "model.context=32", "train.batch_tokens=128",
         "train.precision=fp32", "train.compile=off", "--tokenizer", "bytes")  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def homespun(capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls `homespun ARGUMENTS...` in this process."""
    from homespun.cli.main import main

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(int(end.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps."""
    from homespun.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "small"
    with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMESPUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        main(["train", "stories:60", "--steps", "4", "--out", str(folder), "--quiet", *SMALL])
    assert not end.value.code
    return folder
