"""What the child of a `Rehearsal` runs: `python -m homespun.train.rehearse MARKER`, what to compile in its input."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from homespun.config import parse
from homespun.data.batches import Batch
from homespun.model.decoder import Decoder
from homespun.train.compiling import Compiling
from homespun.train.parallel import World
from homespun.train.precision import choose
from homespun.train.recipe import Recipe


def main() -> None:
    """Compiles one forward and backward into torch's cache, then writes the marker."""
    given = json.loads(sys.stdin.read())
    if hasattr(os, "nice"):
        os.nice(5)
    torch.set_num_threads(given["threads"])  # compiled code holds their number
    recipe = parse(Recipe, given["recipe"])
    model = Decoder(recipe.model).train()
    model.checkpoint_activations = recipe.train.checkpoint_activations
    precision = choose(given["precision"], model, 1, World(0, 1, torch.device("cpu")))
    compiling = Compiling("on", model, print)
    tokens = torch.zeros(given["rows"], recipe.model.context, dtype=torch.int64)
    with compiling.swapped(), precision.autocast(tokens.device):
        losses = recipe.objective.build()(model, Batch(tokens, tokens))
    losses.total.backward()
    marker = Path(sys.argv[1])
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


if __name__ == "__main__":
    main()
