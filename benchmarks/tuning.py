"""What tuning costs and brings: padding of batches of similar length, then all weights beside adapters.

    python benchmarks/tuning.py --base-steps 400 --epochs 3

The base reads WikiText-2 of the shared data; then it is tuned on 1,000 instructions with answers. Padded: how many
places a step computes for one that holds a token, for conversations in any order and sorted as `tune` does it; a
program that packs rows without gaps has 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import homespun as hs
from homespun.learn.conversations import Conversations, read_conversations
from homespun.train.log import PlainConsole, read_metrics

QUIET = PlainConsole(quiet=True)


def main() -> None:
    """Trains, tunes, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--base-steps", default="400")
    parser.add_argument("--epochs", default="3")
    parser.add_argument("--context", default="256")
    given = parser.parse_args()
    rows = str(given.shared / "instruct" / "dolly_hhrlhf_1k.jsonl")
    settings = ["tokenizer.kind=bpe", "tokenizer.size=4096", f"train.steps={given.base_steps}", "train.compile=off"]
    with tempfile.TemporaryDirectory() as folder:
        recipe = hs.recipe(given.recipe, *settings, f"model.context={given.context}")
        base = hs.train(str(given.shared / "wikitext2"), recipe, Path(folder) / "base", console=QUIET)
        found = read_conversations([rows], base.tokenizer, recipe.model.context, 0.1, say=print)
        print(padding(found, recipe.model.context))
        for lora in (None, 4, 16):
            begin = time.perf_counter()
            name = "all weights" if lora is None else f"adapter of rank {lora}"
            out = Path(folder) / name.replace(" ", "-")
            hs.tune(base, rows, out, f"train.epochs={given.epochs}", lora=lora, console=QUIET)
            measured = [row for row in read_metrics(out / "metrics.jsonl") if "validation_loss" in row]
            bits = [row["validation_bits_per_byte"] for row in measured]
            took = time.perf_counter() - begin
            told = f"{bits[0]:.3f} -> {bits[-1]:.3f} bits per byte of held-out answers, best {min(bits):.3f}"
            print(f"{name}: {told}, {took:.0f} s", flush=True)


def padding(found: Conversations, context: int) -> str:
    """Places computed for one token, at batches of 1k, 4k and 16k tokens."""
    told = []
    for tokens in (1024, 4096, 16384):
        batches = found.batches(context, max(1, tokens // context), seed=0)
        lengths, rows = found.train.lengths, batches.batch_rows
        steps = 200 // batches.pool * batches.pool
        by_length = [lengths[batches.chosen(step)] for step in range(steps)]
        order = np.random.default_rng(0)
        by_chance = [order.choice(lengths, min(rows, len(lengths)), replace=False) for _ in range(steps)]
        sorted_, mixed = (
            sum(b.max() * len(b) for b in each) / sum(b.sum() for b in each) for each in (by_length, by_chance)
        )
        told.append(f"{tokens} tokens ({rows} rows): {sorted_:.2f} sorted, {mixed:.2f} in any order")
    return "Padded: " + "; ".join(told)


if __name__ == "__main__":
    main()
