"""How long until nanoGPT's loss: its quick start on a CPU beside our `homespun train`, process by process in turn.

    python benchmarks/time_to_loss.py --data tinyshakespeare.txt --nanogpt CLONE --peers-python ENVIRONMENT/bin/python

nanoGPT runs as its README says (4 layers, width 128, context 64, 2,000 steps of 12 windows), and once more with its
learning rate tuned. Ours runs once with empty caches and once with those that the first run left. The loss of all is
measured by validation.py on the last tenth of the text. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from contest import Contestant, Row, fresh_caches, machine, options, peer_options, publish, say

CONTEXT, ROWS, STEPS = 64, 12, 2000
README = ["--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64",
          "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
          "--lr_decay_iters=2000", "--dropout=0.0"]  # fmt: skip
TUNED = ["--learning_rate=3e-3", "--min_lr=3e-4"]
PEERS = {"nanoGPT, its README": [], "nanoGPT, learning rate tuned": TUNED}
SHARED = Path(os.environ.get("HOMESPUN_SHARED") or Path(__file__).parents[2] / "shared")


@dataclass(frozen=True)
class Ended:
    """One process that has ended: seconds of its training steps, of the whole process, and its validation loss."""

    steps: int
    loss: float
    training: float
    process: float


def main() -> None:
    parser = peer_options(options(__doc__))
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, nargs="+", default=[350, 600], help="ours: steps of each run")
    parser.add_argument("settings", nargs="*", help="ours: dotted.key=value")
    parser.set_defaults(rounds=1)
    given = parser.parse_args()
    about = machine() | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    ended: dict[str, list[Ended]] = {}
    with tempfile.TemporaryDirectory() as place:
        peers = PEERS if _prepare(Path(place), given) else {}
        for seed in range(given.rounds):
            for name, settings in peers.items():
                ended.setdefault(name, []).append(_nanogpt(Path(place), settings, given))
            for steps in given.steps:
                for name, one in _ours(Path(place), steps, seed, given).items():
                    ended.setdefault(f"ours, {steps} steps, {name}", []).append(one)
            say(f"round {seed + 1} of {given.rounds} is done")
    publish(given.results, "Time to nanoGPT's loss", _rows(ended), about | {"rounds": given.rounds})


def _rows(ended: dict[str, list[Ended]]) -> list[Row]:
    """Medians; and how many times as long nanoGPT took, wherever its loss was reached."""
    rows = []
    goals = {"README's": ended.get("nanoGPT, its README"), "tuned": ended.get("nanoGPT, learning rate tuned")}
    for name, runs in ended.items():
        loss = _median(runs, "loss")
        row = {
            "contestant": name,
            "steps": runs[0].steps,
            "tokens": runs[0].steps * ROWS * CONTEXT,
            "loss": round(loss, 3),
            "worst": round(max(one.loss for one in runs), 3),
            "training s": round(_median(runs, "training"), 1),
            "process s": round(_median(runs, "process"), 1),
        }
        for goal, theirs in goals.items():
            for what in ("training", "process"):
                reached = theirs and loss <= _median(theirs, "loss")
                share = _median(theirs, what) / _median(runs, what) if theirs and reached else None
                row[f"{goal} {what} / its"] = share and round(share, 2)
        rows.append(row)
    return rows


def _median(runs: list[Ended], what: str) -> float:
    return statistics.median(getattr(one, what) for one in runs)


def _prepare(place: Path, given: argparse.Namespace) -> bool:
    """The text for both, split as nanoGPT splits it; nanoGPT's own preparation. False where nanoGPT is absent."""
    text = given.data.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    (place / "text").mkdir()
    (place / "text" / "train.txt").write_text(text[:cut], encoding="utf-8")
    (place / "text" / "valid.txt").write_text(text[cut:], encoding="utf-8")
    if not given.nanogpt:
        say("left out: nanoGPT: no clone was named (--nanogpt PATH)")
        return False
    clone, data = Path(given.nanogpt).resolve(), place / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    (data / "input.txt").write_text(text, encoding="utf-8")
    (data / "prepare.py").symlink_to(clone / "data" / "shakespeare_char" / "prepare.py")
    for name in ("config", "configurator.py"):
        (place / name).symlink_to(clone / name)
    done = subprocess.run([given.peers_python, data / "prepare.py"], capture_output=True, text=True)
    if done.returncode:
        say(f"left out: nanoGPT: its preparation failed: {done.stderr.strip().splitlines()[-1]}")
    return not done.returncode


def _nanogpt(place: Path, settings: list[str], given: argparse.Namespace) -> Ended:
    """Its own train.py, untouched; the last checkpoint is kept even where its short estimate was not the best."""
    command = [given.peers_python, str(Path(given.nanogpt).resolve() / "train.py"), "config/train_shakespeare_char.py"]
    said, seconds = _timed([*command, *README, *settings, "--always_save_checkpoint=True"], place, dict(os.environ))
    steps = [(int(step), float(took) / 1e3) for step, took in re.findall(r"^iter (\d+):.*time ([\d.]+)ms", said, re.M)]
    usual = statistics.median(took for _, took in steps)
    training = sum(
        usual if step % 250 == 0 else took for step, took in steps
    )  # those with an evaluation count as usual
    folder = {"checkpoint": str(place / "out-shakespeare-char" / "ckpt.pt"), "nanogpt": given.nanogpt}
    folder |= {"ids": str(place / "data" / "shakespeare_char" / "val.bin"), "task": "evaluate"}
    return Ended(STEPS, _loss("peers.py", folder, given.peers_python), training, seconds)


def _ours(place: Path, steps: int, seed: int, given: argparse.Namespace) -> dict[str, Ended]:
    """`homespun train` with empty caches and again with what is in them then. Its training seconds hold the evaluations
    and samples between the steps."""
    command = [sys.executable, "-m", "homespun", "train", "text", "--recipe", "house-tiny", "--tokenizer", "chars",
               "--steps", str(steps), "--seed", str(seed), "--quiet", f"model.context={CONTEXT}",
               f"train.batch_tokens={ROWS * CONTEXT}", *given.settings]  # fmt: skip
    ended = {}
    with fresh_caches() as environment:
        for caches in ("cold", "warm caches"):
            run = place / f"run-{steps}-{seed}-{caches[:4]}"
            _, seconds = _timed([*command, "--out", str(run)], place, environment)
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            training = max(row["seconds"] for row in rows if "seconds" in row)
            settings = {"task": "evaluate", "run": str(run), "text": str(place / "text" / "valid.txt")}
            ended[caches] = Ended(steps, _loss("ours.py", settings, sys.executable), training, seconds)
    return ended


def _timed(command: list[str], place: Path, environment: dict[str, str]) -> tuple[str, float]:
    """What a process prints, and its seconds."""
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout, seconds


def _loss(script: str, settings: Row, python: str) -> float:
    one = Contestant("validation", script, settings, 0, python)
    if not one.start(dict(os.environ)):
        raise SystemExit("the loss could not be measured")
    one.stop()
    return one.ready["loss"]


if __name__ == "__main__":
    main()
