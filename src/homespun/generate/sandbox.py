"""Chat templates that came with a model are programs: they are filled in another process, within limits.

Jinja's sandbox keeps a template from Python's objects; the process keeps its time, memory and output from ours.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homespun.errors import CheckpointError, DataError
from homespun.train.log import visible

LIMITS = {"seconds": 2.0, "memory": 2**29, "characters": 2**20}
"""Of one filling: seconds, bytes of the whole process (where the system can limit them), characters that come out."""

_PROGRAM = Path(__file__).with_name("sandboxed.py")


class Sandbox:
    """Fills one Jinja template. Its process starts at the first `render` and waits for the next; threads may share it.

    Raises `CheckpointError` where Jinja is missing.
    """

    def __init__(self, template: str):
        if importlib.util.find_spec("jinja2") is None:
            raise CheckpointError("This model's chat template needs Jinja", "Install it with: pip install jinja2")
        self._template = template
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, values: Mapping[str, Any]) -> str:
        """The text. Raises `DataError` when the template refuses the values, `CheckpointError` when it is broken, or
        reaches a limit."""
        with self._lock:
            answer = self._ask(f"{json.dumps(values)}\n".encode())
        if "text" in answer:
            return answer["text"]
        told = " ".join(visible(answer.get("refused") or answer["failed"]).split())
        if "refused" in answer:
            raise DataError(f"The model's chat template refuses these messages: {told:.200}", "Change them.")
        raise CheckpointError(f"The model's chat template fails: {told:.200}", "Mend it in the run's imported.json.")

    def _ask(self, request: bytes) -> dict[str, str]:
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
            request = f"{json.dumps(LIMITS | {'template': self._template})}\n".encode() + request
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:
            _end(process)  # what it says later must not be taken for the next answer
            raise
        if line:
            answer: dict[str, str] = json.loads(line)
            return answer
        _end(process)
        raise CheckpointError(
            f"The model's chat template reaches a limit: {LIMITS['seconds']:g} seconds, or the memory of a process",
            "Mend it in the run's imported.json, or do not trust this model.",
        )

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM), json.dumps(sys.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us alone
        )  # fmt: skip
        weakref.finalize(self, _end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # of a request that it did not live to read
                continue
    process.wait()
