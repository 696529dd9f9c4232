"""Several processes make the same run as one, and stop together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from homespun.train.log import read_metrics
from tests.train.house import corpus, tensors, trainer

ROOT = Path(__file__).parent.parent.parent


def start(folder: Path, *settings: str, ranks: int = 1) -> list[subprocess.Popen]:
    """Starts the ranks of one run, each in a process group of its own."""
    corpus()  # into the cache
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.train.rank", str(folder), *settings]
    base = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command, env=base | (group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}), cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """Waits for all; returns what they printed."""
    outputs = [process.communicate(timeout=120) for process in processes]
    assert not [error for _, error in outputs if "Traceback" in error], outputs
    assert not [process.returncode for process in processes if process.returncode < 0], outputs
    return [output for output, _ in outputs]


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_metrics(folder / "metrics.jsonl") if row.get(name) is not None]


EXPERTS = [  # without the balance loss, which is one of each process's own tokens
    f"model.feed_forward.{setting}"
    for setting in ("kind=experts", "experts=4", "hidden=16", "balance_loss=0", "router.kind=sigmoid")
]


PAIRS = [  # negatives of both processes; the clipping of gradients and AdamW do not hide a wrong share of either loss
    "objective.kind=joint", "objective.weight=1", "objective.temperature=0.2", "objective.shortest=4",
    "model.embedding={size: 8}", "train.batch_tokens=512",
]  # fmt: skip


@pytest.mark.timeout(180)
@pytest.mark.parametrize("parts", [[], EXPERTS, PAIRS], ids=["dense", "experts", "pairs"])
def test_two_ranks_equal_one(tmp_path, parts):
    settings = ("model.dropout=0", "optimizer.kind=adamw", "optimizer.learning_rate=1e-3", *parts)
    finish(start(tmp_path / "two", *settings, ranks=2))
    one = trainer(tmp_path / "one", *settings)
    one.fit()
    two = trainer(tmp_path / "two", *settings)  # loads what the two ranks saved: another world size goes on from there
    assert two.progress.step == 12
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    seconds = [losses(tmp_path / folder, "contrastive") for folder in ("two", "one")]
    assert seconds[0] == pytest.approx(seconds[1], abs=1e-4) and bool(seconds[0]) == (parts is PAIRS)
    ours, theirs = tensors(one), tensors(two)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)


@pytest.mark.timeout(180)
def test_nan_on_one_rank_is_skipped_by_all(tmp_path):
    outputs = finish(start(tmp_path, "train.max_bad_steps=3", ranks=2))
    assert all("skipped 2" in output and "steps 12" in output for output in outputs), outputs
    assert all(torch.isfinite(tensor).all() for tensor in tensors(trainer(tmp_path)).values())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_saves_the_same_step_on_every_rank(tmp_path, ranks):
    processes = start(tmp_path, "slow", "train.steps=400", ranks=ranks)
    assert processes[0].stdout.readline() == "ready\n"
    while not losses(tmp_path):
        assert processes[0].poll() is None
        time.sleep(0.05)
    processes[-1].send_signal(signal.SIGTERM if ranks == 1 else signal.SIGINT)  # one rank alone is told
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [143 if ranks == 1 else 130] * ranks
    steps = {re.search(r"steps (\d+) reason signal", output)[1] for output in outputs}
    assert len(steps) == 1
    again = trainer(tmp_path, "train.steps=400")
    assert again.progress.step == int(steps.pop()) > 0
