"""Greedy decoding of a recipe's model beside plain GPT code without a cache, interleaved in one process.

    python benchmarks/decode.py --recipe house-tiny --prompt 32 --tokens 96

Prints one JSON line: tokens/s of each (median, least, most) and their ratio, at batch 1 and batch 8.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import torch
from plain_gpt import PlainGPT

import homespun as hs
from homespun.config import override
from homespun.data.vocabulary import Bytes


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--recipe", default="house-tiny")
    options.add_argument("--vocab", type=int, default=512)
    options.add_argument("--prompt", type=int, default=32)
    options.add_argument("--tokens", type=int, default=96)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    settings = override(hs.recipe(given.recipe), [f"model.vocab={given.vocab}"]).model
    tokenizer, _ = Bytes().build([], 0)
    model = hs.Decoder(settings).eval()
    generator = hs.Generator(model, tokenizer)
    rival = PlainGPT(given.vocab, settings.width, settings.layers, settings.attention.heads, settings.context).eval()
    greedy = hs.Sampling(temperature=0.0, max_tokens=given.tokens)
    for rows in (1, 8):
        prompts = torch.randint(256, (rows, given.prompt))
        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(given.rounds + 1):
            begin = time.perf_counter()
            written = sum(len(done.tokens) for done in generator.complete(prompts.tolist(), greedy))
            times["ours"].append((time.perf_counter() - begin) / written)
            begin = time.perf_counter()
            rival.generate(prompts, given.tokens)
            times["plain"].append((time.perf_counter() - begin) / (rows * given.tokens))
        warm = {name: all_[1:] for name, all_ in times.items()}
        result = {
            name: [round(1 / t) for t in (statistics.median(all_), max(all_), min(all_))] for name, all_ in warm.items()
        }
        print(json.dumps({
            "what": f"decoding, batch {rows}, tokens/s: median, least, most", "recipe": given.recipe, **result,
            "ratio": round(statistics.median(warm["plain"]) / statistics.median(warm["ours"]), 2),
            "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 2), "torch": torch.__version__,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
