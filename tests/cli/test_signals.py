"""Ctrl-C at the command line: saved, said how to go on, and gone on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL

COMMAND = ["train", "stories:60", "--out", "a run", "--minutes", "10", *SMALL]


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX knows them")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_command_that_was_said_goes_on(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "homespun", *COMMAND], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8",
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    again = said.split("To go on: homespun ")[1].strip()
    assert again == "train stories:60 --out 'a run' --minutes 10 " + " ".join(SMALL)
    steps = int(said.split("Stopped at step ")[1].split()[0])
    assert (tmp_path / "a run" / "checkpoints" / f"step-{steps:08d}" / "manifest.json").is_file()
