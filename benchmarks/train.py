"""Training speed of a recipe beside plain GPT code of the same size, interleaved in one process.

    python benchmarks/train.py --recipe house-tiny --rounds 5

Prints one JSON line: tokens/s of each (median, least, most) and their ratio. Forward, backward, clipping and the
optimizer's step on the same random tokens; nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from plain_gpt import PlainGPT

import homespun as hs
from homespun.config import override
from homespun.data.batches import Batch
from homespun.train.compiling import Compiling
from homespun.train.machine import keep_memory
from homespun.train.parallel import World
from homespun.train.precision import choose
from homespun.train.update import Updater


def ours(recipe: hs.Recipe, batch: Batch) -> tuple[Callable[[], None], int, str]:
    """A function that makes one step, the number of parameters, and the precision."""
    model = hs.Decoder(recipe.model).train()
    world = World(0, 1, torch.device("cpu"))
    precision = choose(recipe.train.precision, model, batch.tokens.numel(), world)
    updater = Updater(recipe, model, world, precision, Compiling("off", model, print), len(batch.tokens))
    count = sum(p.numel() for p in model.parameters())
    return (lambda: None if updater.step(batch, 50, 100).updated else None), count, precision.name


def plain(recipe: hs.Recipe, batch: Batch) -> tuple[Callable[[], None], int]:
    """The same for the plain code, with AdamW."""
    settings = recipe.model
    model = PlainGPT(
        settings.vocab, settings.width, settings.layers, settings.attention.heads, settings.context
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> None:
        _, loss = model(batch.tokens, batch.targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def seconds(step: Callable[[], None], steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--recipe", default="house-tiny")
    options.add_argument("--vocab", type=int, default=512)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=10, help="steps of each in a round")
    options.add_argument("settings", nargs="*", help="dotted.key=value for our recipe")
    given = options.parse_args()
    keep_memory()  # for both
    recipe = override(hs.recipe(given.recipe, *given.settings), [f"model.vocab={given.vocab}"])
    rows = max(1, recipe.train.batch_tokens // recipe.model.context)
    tokens = torch.randint(given.vocab, (rows, recipe.model.context + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    (our_step, our_size, precision), (plain_step, plain_size) = ours(recipe, batch), plain(recipe, batch)
    seconds(our_step, 3), seconds(plain_step, 3)  # warm up
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(given.rounds):
        times["ours"].append(seconds(our_step, given.steps))
        times["plain"].append(seconds(plain_step, given.steps))
    result = {name: [round(batch.tokens.numel() / t) for t in (statistics.median(all_), max(all_), min(all_))]
              for name, all_ in times.items()}  # fmt: skip
    print(json.dumps({
        "what": "training, tokens/s: median, least, most", "recipe": given.recipe, "settings": given.settings,
        "precision": precision, "parameters": {"ours": our_size, "plain": plain_size}, **result,
        "ratio": round(statistics.median(times["plain"]) / statistics.median(times["ours"]), 2),
        "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 2), "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
