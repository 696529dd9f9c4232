"""What writing with rounded weights costs and gains: bits per byte of held-out text, and tokens/s, for each form.

    python benchmarks/weights.py input.txt --minutes 1
    python benchmarks/weights.py input.txt --run runs/mine

Trains `--recipe` on the first nine tenths of the text, unless a run is given; that one must not have seen the last
tenth. The bits are measured on that tenth with the packed products themselves, cast activations and all. Speed: greedy,
the forms in turn.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch
from contest import Row, machine, options, publish
from validation import mean_loss

import homespun as hs
from homespun.generate.engine import Generator
from homespun.model.packed import Weights
from homespun.run import Run
from homespun.train.log import PlainConsole

BATCHES = (1, 8)
PROMPT = 32  # tokens


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--run", type=Path, help="a run to measure; without it one is trained")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--minutes", default="1")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that each row writes in a round")
    given = parser.parse_args()
    about = machine() | {"torch": torch.__version__, "threads": torch.get_num_threads()}
    text = given.text.read_text(encoding="utf-8")
    seen, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    run = hs.load(given.run) if given.run else _trained(given, seen, held_out)
    forms: dict[str, Generator] = {
        form: Generator(run.model, run.tokenizer, run.generator.begin, form) for form in get_args(Weights)
    }
    bits = {form: _bits_per_byte(run, generator, held_out) for form, generator in forms.items()}
    speeds = {batch: _speeds(run, forms, held_out, batch, given) for batch in BATCHES}
    rows: list[Row] = [
        {
            "weights": form,
            "bits per byte": round(bits[form], 4),
            "more, %": round(100 * (bits[form] / bits["fp32"] - 1), 3),
            **{f"tokens/s, batch {batch}": round(speeds[batch][form]) for batch in BATCHES},
        }
        for form in forms
    ]
    millions = sum(p.numel() for p in run.model.parameters()) / 1e6
    publish(given.results, f"Weights, {run.recipe.name}", rows, {**about, "million parameters": round(millions, 2)})


def _trained(given: argparse.Namespace, seen: str, held_out: str) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("train.txt", seen), ("valid.txt", held_out)):
            Path(folder, name).write_text(part, encoding="utf-8")
        recipe = hs.recipe(given.recipe, f"train.minutes={given.minutes}")
        return hs.train(folder, recipe, Path(folder, "run"), console=PlainConsole(quiet=True))


def _bits_per_byte(run: Run, generator: Generator, text: str) -> float:
    ids = run.tokenizer.encode(text)
    nats = mean_loss(generator.writer, ids, run.recipe.model.context) * len(ids)
    return nats / len(text.encode()) / math.log(2)


def _speeds(
    run: Run, forms: dict[str, Generator], text: str, batch: int, given: argparse.Namespace
) -> dict[str, float]:
    """Tokens/s of all rows together, in the median round, after the first token."""
    ids = run.tokenizer.encode(text[:100_000])
    prompts = [ids[start : start + PROMPT] for start in range(0, batch * PROMPT, PROMPT)]
    greedy = hs.Sampling(max_tokens=given.tokens, temperature=0)
    found: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(given.rounds):
        for form, generator in forms.items():
            times = [time.perf_counter() for _ in generator.tokens(prompts, greedy)]
            found[form].append((len(times) - batch) / (times[-1] - times[batch - 1]))
    return {form: statistics.median(each) for form, each in found.items()}


if __name__ == "__main__":
    main()
