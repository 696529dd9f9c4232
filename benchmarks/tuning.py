"""What tuning costs and brings: padding of batches of similar length, then all weights beside adapters.

    python benchmarks/tuning.py
    python benchmarks/tuning.py --padding --context 1024

The base reads WikiText-2 of the shared data; then it is tuned on 1,000 instructions with answers. Padded: how many
places a step computes for one that holds a token, for conversations in any order and sorted as `tune` does it; a
program that packs rows without gaps has 1. `--padding` stops there, with a vocabulary but no base.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from contest import Row, machine, options, publish, say

import homespun as hs
from homespun.learn.conversations import Conversations, read_conversations
from homespun.train.log import PlainConsole, read_metrics

QUIET = PlainConsole(quiet=True)
SMALL = ["model.width=96", "model.layers=2", "train.batch_tokens=2048", "train.compile=off", "train.precision=fp32"]


def main() -> None:
    """Trains, tunes, and publishes what came of it."""
    parser = options(__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--base-steps", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--padding", action="store_true")
    parser.add_argument("--base", type=Path, help="a run to tune; without it one is trained")
    given = parser.parse_args()
    about = machine() | {"torch": torch.__version__}
    text, rows = str(given.shared / "wikitext2"), str(given.shared / "instruct" / "dolly_hhrlhf_1k.jsonl")
    corpus = hs.prepare(text, "bpe:2048", console=QUIET)
    found = read_conversations([rows], corpus.tokenizer, given.context, 0.1, say=say)
    held = about | {"context": given.context, "conversations": len(found.train.lengths)}
    publish(given.results, f"Padding of conversations, context {given.context}", padding(found, given.context), held)
    if given.padding:
        return
    settings = ["tokenizer.kind=bpe", "tokenizer.size=2048", f"train.steps={given.base_steps}", *SMALL]
    with tempfile.TemporaryDirectory() as folder:
        recipe = hs.recipe(given.recipe, *settings, f"model.context={given.context}")
        base = hs.load(given.base) if given.base else hs.train(text, recipe, Path(folder) / "base", console=QUIET)
        ways = {"all weights": None, "adapter of rank 4": 4, "adapter of rank 16": 16}
        tuned = [told(way, lora, base, rows, Path(folder) / str(lora), given.epochs) for way, lora in ways.items()]
    held |= {"recipe": given.recipe, "steps of the base": given.base_steps, "epochs": given.epochs}
    publish(given.results, "Tuning on 1,000 instructions", tuned, held)


def told(way: str, lora: int | None, base: hs.Run, rows: str, out: Path, epochs: int) -> Row:
    """What one way to tune brings, and what it keeps on the disk beside the merged model."""
    settings = (f"train.epochs={epochs}", "train.batch_tokens=2048", "train.precision=fp32")
    run = hs.tune(base, rows, out, *settings, lora=lora, console=QUIET)
    bits = [row["validation_bits_per_byte"] for row in read_metrics(out / "metrics.jsonl") if "validation_loss" in row]
    file = next(out.glob(f"checkpoints/*/{'adapter' if lora else 'model'}.safetensors"))
    say(f"{way}: {bits[0]:.3f} -> {bits[-1]:.3f}")
    return {
        "trained": way,
        "steps": run.step,
        "before, bits per byte": f"{bits[0]:.3f}",
        "after": f"{bits[-1]:.3f}",
        "best": f"{min(bits):.3f}",
        "learnt, KB": round(file.stat().st_size / 1000),
    }


def padding(found: Conversations, context: int) -> list[Row]:
    """Places computed for one token, at batches of 1k, 4k and 16k tokens."""
    table = []
    for tokens in (1024, 4096, 16384):
        batches = found.batches(context, max(1, tokens // context), seed=0)
        lengths, rows = found.train.lengths, batches.batch_rows
        steps = 200 // batches.pool * batches.pool
        by_length = [lengths[batches.chosen(step)] for step in range(steps)]
        order = np.random.default_rng(0)
        by_chance = [order.choice(lengths, min(rows, len(lengths)), replace=False) for _ in range(steps)]
        similar, mixed = (
            sum(b.max() * len(b) for b in each) / sum(b.sum() for b in each) for each in (by_length, by_chance)
        )
        places = {"similar lengths": f"{similar:.2f}", "any order": f"{mixed:.2f}", "packed": "1.00"}
        table.append({"tokens": tokens, "conversations of a step": rows} | places)
    return table


if __name__ == "__main__":
    main()
