"""What a learner keeps: Shakespeare, then German, then Wikipedia; with replay and gate, and without, side by side.

    python benchmarks/learner.py --steps 2000

A run is trained on tinyshakespeare. Then a learner reads the German Genesis, and then articles of Wikipedia, both of
the shared data, from the same checkpoint: once as it comes, once without replay and gate. Printed are the bits per byte
of held-out text of each domain after each stage, and how the gate decided.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import homespun as hs
from homespun.config import override
from homespun.learn.autonomous import Learner, Limits
from homespun.learn.settings import LearnConfig
from homespun.learn.status import status
from homespun.train.log import PlainConsole

WAYS = {"replay and gate": [], "neither": ["replay=0", "gate=false"]}
SETTINGS = ["tokenizer.kind=bpe", "tokenizer.size=2048", "train.batch_tokens=4096", "train.compile=off"]


def main() -> None:
    """Trains, learns both ways, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--steps", default="1000", help="of the first training")
    parser.add_argument("--cycles", type=int, help="of each stage at most")
    parser.add_argument("--wikipedia", type=int, default=400_000, help="characters of it")
    parser.add_argument("--learn", action="append", default=[], help="KEY=VALUE of both learners")
    parser.add_argument("--out", type=Path, help="keeps the runs in this folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value of the first training")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        recipe = hs.recipe(given.recipe, *SETTINGS, f"train.steps={given.steps}", *given.settings)
        text = str(given.shared / "tinyshakespeare.txt")
        first = hs.train(text, recipe, out / "shakespeare", console=PlainConsole(quiet=True))
        stages = [f"german={given.shared / 'genesis' / 'german.txt'}", f"wikipedia={articles(given, out)}"]
        found = {}
        for name, settings in WAYS.items():
            place = out / name.replace(" ", "-")
            shutil.copytree(first.folder, place, ignore=shutil.ignore_patterns(".lock"))
            found[name] = story(place, stages, [*settings, *given.learn], given.cycles)
            print(json.dumps({name: found[name]}), flush=True)
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def articles(given: argparse.Namespace, out: Path) -> Path:
    """Rows of Wikipedia, so many characters of them; without pyarrow, those of WikiText-2, which is Wikipedia, too."""
    place, left = out / "wikipedia.jsonl", given.wikipedia
    try:
        from pyarrow import parquet
    except ImportError:
        print("without pyarrow the articles are those of WikiText-2: pip install pyarrow")
        whole = (given.shared / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
        texts = re.split(r"^(?= = [^=\n]+ = *$)", whole, flags=re.MULTILINE)
    else:
        sample = given.shared / "wikipedia" / "wikipedia_en_sample.parquet"
        texts = parquet.read_table(sample)["text"].to_pylist()
    with place.open("w", encoding="utf-8") as file:
        for text in texts:
            if left <= 0:
                break
            file.write(json.dumps({"text": text[:left]}) + "\n")
            left -= len(text)
    return place


def story(place: Path, stages: list[str], settings: list[str], cycles: int | None) -> list[dict[str, Any]]:
    """Learns one stage after the other; the figures after each."""
    rows = []
    for stage in stages:
        run, begin = hs.load(place), time.monotonic()
        learner = Learner(place, run.recipe, run.tokenizer, run.model, override(LearnConfig(), settings))
        done = asyncio.run(learner.run([stage], Limits(cycles=cycles)))
        learner.close()
        told = status(place, last=1000)
        bits = {each["domain"]: (each["first"], each["now"]) for each in told["domains"]}
        row = {"stage": stage.split("=")[0], "kept": done.kept, "refused": done.refused, "bits": bits}
        rows.append(row | {"seconds": round(time.monotonic() - begin, 1)})
    return rows


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Bits per byte before anything was learned, and after each stage."""
    lines = ["| | domain | at first | after German | after Wikipedia | kept, refused |", "|---|---|---|---|---|---|"]
    for name, rows in found.items():
        counts = ", ".join(f"{row['kept']} + {row['refused']}" for row in rows)
        for domain in ("corpus", "german", "wikipedia"):
            first = rows[-1]["bits"].get(domain, (None, None))[0]
            cells = [first, *(row["bits"].get(domain, (None, None))[1] for row in rows)]
            shown = " | ".join("" if cell is None else f"{cell:.3f}" for cell in cells)
            lines.append(f"| {name} | {domain} | {shown} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
