"""The joint objective beside the same run with weight 0, BM25 and bags of words: retrieval, similarity, bits per byte.

    python benchmarks/embeddings.py --steps 400

The runs read the same articles (Wikipedia and WikiText-2 of the shared data), from the same weights, with the same
budget. `joint`: the objective as it comes; `states`: without vectors of words in its head; `plain`: with weight 0, so
that a text is the mean of its hidden states; `untrained`: the joint one before its first step. Then they are tried on
what none has seen: 548 questions of BoolQ and 500 passages, the sentence pairs of SemEval 2012 to 2014, and the
validation side of the text.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import homespun as hs
from homespun.evaluate.embeddings import Embed, retrieval, similarity
from homespun.evaluate.tasks import read_retrieval, read_similarity
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.train.log import PlainConsole, read_metrics

SETTINGS = [
    "tokenizer.kind=bpe", "tokenizer.size=4096", "train.batch_tokens=16384",
    "objective.kind=joint", "objective.views=adjacent",
]  # fmt: skip
RUNS = {"joint": [], "states": ["model.embedding={words: false}"], "plain": ["objective.weight=0"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--steps", help="steps of each run")
    parser.add_argument("--minutes", help="minutes of each run")
    parser.add_argument("--out", type=Path, help="keeps the runs in this folder")
    parser.add_argument("--only", choices=tuple(RUNS), action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value of both runs")
    given = parser.parse_args()
    budget = f"train.steps={given.steps}" if given.steps else f"train.minutes={given.minutes or 1}"
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        text = corpus(given.shared, Path(folder) / "text.jsonl")
        rows = words(given.shared)
        for name, more in RUNS.items():
            if name in (given.only or RUNS):
                recipe = hs.recipe(given.recipe, *SETTINGS, budget, *given.settings, *more)
                run = hs.train(str(text), recipe, out / name, console=PlainConsole(quiet=True))
                rows[name] = measured(run, given.shared)
                if name == "joint":
                    torch.manual_seed(0)
                    begun = hs.Embedder(Decoder(run.recipe.model), run.tokenizer)
                    rows["untrained"] = tried(begun.embed, given.shared)
                print(name, json.dumps(rows[name]), flush=True)
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def corpus(shared: Path, place: Path) -> Path:
    """All articles as JSON lines."""
    with place.open("w", encoding="utf-8") as file:
        for article in articles(shared):
            if article.strip():
                file.write(json.dumps({"text": article.strip()}) + "\n")
    return place


def articles(shared: Path) -> Iterator[str]:
    """Those of Wikipedia where pyarrow is installed, and those of WikiText-2 without the marks of its preparation."""
    try:
        from pyarrow import parquet
    except ImportError:
        print("without pyarrow Wikipedia is left out: pip install pyarrow")
    else:
        yield from parquet.read_table(shared / "wikipedia" / "wikipedia_en_sample.parquet")["text"].to_pylist()
    text = (shared / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    text = re.sub(r" @(.)@ ", r"\1", text).replace("<unk>", "").replace(" n't", "n't")
    text = re.sub(r" ([,.;:!?)%]|'s\b)", r"\1", re.sub(r"(\() ", r"\1", text))
    yield from re.split(r"^ = [^=\n]+ = *$", text, flags=re.MULTILINE)


def words(shared: Path) -> dict[str, dict[str, float]]:
    """What words alone reach."""
    found: dict[str, dict[str, float]] = {}
    for task in (
        retrieval(read_retrieval(shared / "retrieval_boolq_dev")),
        similarity(read_similarity(shared / "sts" / "sts12-14.tsv")),
    ):
        for name, figures in task.items():
            found.setdefault(name, {}).update(figures)
    return found


def measured(run: hs.Run, shared: Path) -> dict[str, float]:
    rows = read_metrics(run.folder / "metrics.jsonl")
    last = [row for row in rows if "validation_bits_per_byte" in row][-1]
    training = [row for row in rows if "loss" in row][-1]
    space = ("contrastive", "alignment", "uniformity", "spread")
    return {
        **tried(run.embed, shared),
        "parameters": cost(run.recipe.model).parameters,
        "bits per byte": last["validation_bits_per_byte"],
        "steps": last["step"],
        "seconds": last["seconds"],
        **{name: training[name] for name in space if name in training},
    }


def tried(embed: Embed, shared: Path) -> dict[str, float]:
    return {
        **retrieval(read_retrieval(shared / "retrieval_boolq_dev"), embed)["model"],
        **similarity(read_similarity(shared / "sts" / "sts12-14.tsv"), embed)["model"],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for name, figures in rows.items():
        cells = [figures.get(column) for column in columns]
        lines.append([name, *("" if cell is None else f"{cell:.4g}" for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
