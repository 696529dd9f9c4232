"""A first compile in a process of its own: it leaves its results in torch's cache, where the training finds them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from homespun.data.corpus import cache_folder
from homespun.model.cost import cost
from homespun.train.machine import available_cores, available_memory
from homespun.train.memory import SHARE
from homespun.train.recipe import Recipe


class Rehearsal:
    """One forward and backward of `recipe`'s model on `rows` rows, compiled in a child process.

    While it runs, this process leaves it a core. `ready`: someone has compiled the same on this machine before.
    """

    def __init__(self, recipe: Recipe, rows: int, precision: str):
        self.recipe, self.rows = recipe, rows
        self.given = json.dumps(
            {
                "recipe": recipe.model_dump(mode="json"),
                "rows": rows,
                "precision": precision,
                "threads": torch.get_num_threads(),
            }
        )
        versions = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        model = recipe.model.model_dump_json()
        key = hashlib.sha256(f"{versions} {model} {rows} {precision} {torch.get_num_threads()}".encode()).hexdigest()
        self.marker = compiled_folder() / f"ready-{key[:32]}"
        self.process: subprocess.Popen[str] | None = None
        self.failed = ""

    @property
    def ready(self) -> bool:
        """Whether the results lie in the cache."""
        return not self.running and self.marker.is_file()

    @property
    def running(self) -> bool:
        """Whether the child is at work. When it has just ended, this process takes its threads back."""
        if self.process is None:
            return False
        status = self.process.poll()
        if status is None:
            return True
        self._ended(f"exit status {status}" if status else "")
        return False

    def start(self) -> bool:
        """Starts the child; False where there is no memory for a second model beside the first."""
        tokens = self.rows * self.recipe.model.context
        costs = cost(self.recipe.model, checkpointed=self.recipe.train.checkpoint_activations)
        if costs.training_bytes(tokens) > SHARE * available_memory():
            return False
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-m", "homespun.train.rehearse", str(self.marker)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(self.given)
        self._threads = torch.get_num_threads()
        torch.set_num_threads(max(1, min(self._threads, available_cores() - 1)))
        return True

    def stop(self) -> None:
        """Ends the child if it is still at work, which Ctrl-C does not reach."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self._ended("")

    def _ended(self, failed: str) -> None:
        self.process, self.failed = None, failed
        torch.set_num_threads(self._threads)


def compiled_folder() -> Path:
    """Where compiled code is kept for the next run: `TORCHINDUCTOR_CACHE_DIR`, which this sets unless someone has.

    Torch sets it, too, as soon as it is asked: to a folder among the temporary files, which do not last.
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if not given or Path(given).name.startswith("torchinductor_"):
        given = os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder().parent / "compiled")
    return Path(given)
