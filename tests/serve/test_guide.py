"""Every command of docs/serving.md works, and what it says of the limits is so.

The guide is read from its beginning to its end, in a folder with a run in `runs/mine`. A line that begins with
`homespun serve` starts a server, which ends the one before; it listens at 127.0.0.1 on a free port, which takes the
place of 8000.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from homespun.cli import serve as verb
from homespun.serve.limits import Limits
from tests.serve.process import Process

PROJECT = Path(__file__).parent.parent.parent
GUIDE = (PROJECT / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_command_and_example_works(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("curl and bash are not there")
    shutil.copytree(runs[0], tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    server: Process | None = None
    asked = 0
    try:
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE):
            if language == "python":
                assert server is not None
                exec(block.replace(":8000", f":{server.port}"), {})
                assert capsys.readouterr().out
                continue
            for line in block.splitlines():
                if line.startswith("homespun serve "):
                    if server is not None:
                        server.end()
                    server = Process(*shlex.split(line.replace("0.0.0.0", "127.0.0.1"))[2:])
                    continue
                if line.startswith("curl "):
                    assert server is not None
                    asked += 1
                    line = line.replace(":8000", f":{server.port}").replace("curl ", "curl --fail-with-body -sS ", 1)
                done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, encoding="utf-8")
                assert done.returncode == 0, (line, done.stdout, done.stderr)
                assert done.stdout or ">" in line
    finally:
        if server is not None:
            server.end()
    assert asked == 8


def test_the_limits_are_those_of_the_guide_and_of_the_command() -> None:
    names = {"body": "--body-limit", "prompt_tokens": "--max-prompt-tokens", "tokens": "--max-tokens",
             "texts": "--max-texts", "inputs": "--max-inputs", "input_tokens": "--max-input-tokens",
             "rows": "--max-rows", "queue": "--queue", "connections": "--connections",
             "seconds": "--timeout", "patience": "--client-timeout", "grace": "--grace"}  # fmt: skip
    said = dict(re.findall(r"^\| `(--[\w-]+)` \| (\d+) \|", GUIDE, re.MULTILINE))
    limits = Limits()
    assert said == {option: f"{getattr(limits, name):g}" if name in ("seconds", "patience", "grace")
                    else str(getattr(limits, name)) for name, option in names.items()}  # fmt: skip
    assert set(names) == set(Limits.model_fields)
    source = inspect.getsource(verb)
    for option, default in said.items():
        assert re.search(rf'"{option}", "\w+", "[^"]*: {default}\."', source), option
