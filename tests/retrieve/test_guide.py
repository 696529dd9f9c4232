"""Every command and the Python of docs/retrieval.md work, in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import homespun as hs
from homespun.cli.main import main

GUIDE = (Path(__file__).parent.parent.parent / "docs" / "retrieval.md").read_text(encoding="utf-8")
SMALL = ("model.width=32", "model.layers=1", "model.attention.heads=2", "model.context=256", "train.batch_tokens=512",
         "train.steps=2", "train.precision=fp32", "train.compile=off", "tokenizer.kind=bytes")  # fmt: skip


def test_every_command_and_example_works(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    hs.train("stories:40", hs.recipe("house-tiny", *SMALL), out=Path("runs") / "mine")
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert len(lines) == 5
    for line in lines:
        capfd.readouterr()
        if line.startswith("homespun"):
            with pytest.raises(SystemExit) as end:
                main(shlex.split(line)[1:])
            assert not end.value.code
        else:
            subprocess.run(["bash", "-ec", line], check=True)
        out, err = capfd.readouterr()
        assert out.strip() and "no passage" not in err
        if "--retrieve" in line:
            assert "fox.md:1" in err or '"source": "' in out
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/retrieval.md", "exec"), names)
    assert names["found"].passages
