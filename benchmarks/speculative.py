"""What a draft gains in writing one text: tokens/s, accepted proposals, and tokens for each forward of the model.

    python benchmarks/speculative.py input.txt --minutes 2
    python benchmarks/speculative.py input.txt --run runs/mine --draft runs/small

Trains `--recipe`, and the same with `--smaller` settings as its draft, on the first nine tenths of the text, unless
runs of one tokenizer are given; these must not have seen the last tenth, from which the prompts are. The contestants
write in turn, greedily and at temperature 0.8, the same texts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from contest import Row, machine, options, publish

import homespun as hs
from homespun.generate.engine import Generator
from homespun.generate.speculative import Draft, DraftModel, PromptLookup, Report
from homespun.run import Run
from homespun.train.log import PlainConsole

PROMPT = 32  # tokens
TEMPERATURES = (0.0, 0.8)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--run", type=Path, help="a run to measure; without it one is trained")
    parser.add_argument("--draft", type=Path, help="a smaller run of the same tokenizer; without it one is trained")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--smaller", nargs="+", default=["model.layers=1"], help="settings of the draft")
    parser.add_argument("--minutes", default="2", help="for each of both trainings")
    parser.add_argument("--tokens", type=int, default=200, help="of each text")
    given = parser.parse_args()
    if (given.run is None) != (given.draft is None):
        parser.error("give both --run and --draft, or neither")
    about = machine() | {"torch": torch.__version__, "threads": torch.get_num_threads()}
    text = given.text.read_text(encoding="utf-8")
    seen, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    run, small = [hs.load(each) for each in (given.run, given.draft)] if given.run else _trained(given, seen, held_out)
    drafts: dict[str, Draft | None] = {
        "none": None,
        "look-up": PromptLookup(),
        f"{_millions(small)} million parameters": DraftModel(small.generator, run.generator),
    }
    rows = [row for temperature in TEMPERATURES for row in _rows(run, drafts, held_out, temperature, given)]
    publish(given.results, f"Speculation, {run.recipe.name}", rows, {**about, "million parameters": _millions(run)})


def _trained(given: argparse.Namespace, seen: str, held_out: str) -> list[Run]:
    """The run and its draft."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        for name, part in (("train.txt", seen), ("valid.txt", held_out)):
            (data / name).write_text(part, encoding="utf-8")
        return [
            hs.train(
                str(data),
                hs.recipe(given.recipe, f"train.minutes={given.minutes}", *settings),
                Path(folder, name),
                console=PlainConsole(quiet=True),
            )
            for name, settings in (("run", []), ("draft", given.smaller))
        ]


def _rows(
    run: Run, drafts: dict[str, Draft | None], text: str, temperature: float, given: argparse.Namespace
) -> list[Row]:
    """One row for each draft, over the same texts: one in a round."""
    ids = run.tokenizer.encode(text[:100_000])
    speeds: dict[str, list[float]] = {name: [] for name in drafts}
    reports = {name: Report() for name in drafts}
    same = dict.fromkeys(drafts, 0)
    for number in range(given.rounds):
        prompt = ids[number * PROMPT : (number + 1) * PROMPT]
        sampling = hs.Sampling(max_tokens=given.tokens, temperature=temperature, seed=number)
        plain: list[int] = []
        for name, draft in drafts.items():
            written, seconds = _written(run.generator, draft, reports[name], prompt, sampling)
            plain = plain or written
            same[name] += written == plain
            speeds[name].append(len(written) / seconds)
    typical = {name: statistics.median(each) for name, each in speeds.items()}
    return [
        {
            "draft": name,
            "temperature": temperature,
            "tokens/s": round(typical[name]),
            "it / none": round(typical[name] / typical["none"], 2),
            "accepted, %": round(100 * reports[name].acceptance) if drafts[name] else None,
            "tokens for a forward": round(reports[name].tokens_per_step, 2) if drafts[name] else 1.0,
            "same texts": f"{same[name]} of {given.rounds}",
        }
        for name in drafts
    ]


def _written(
    generator: Generator, draft: Draft | None, report: Report, prompt: list[int], sampling: hs.Sampling
) -> tuple[list[int], float]:
    """The ids of a text, and the seconds that it took, its prompt among them."""
    generator.draft, generator.report = draft, report
    begin = time.perf_counter()
    ids = [token.id for token in generator.tokens([prompt], sampling)]
    return ids, time.perf_counter() - begin


def _millions(run: Run) -> float:
    return round(sum(p.numel() for p in run.model.parameters()) / 1e6, 2)


if __name__ == "__main__":
    main()
