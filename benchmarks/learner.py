"""What a learner keeps: Shakespeare, then German, then Wikipedia; with replay, without it, and without the gate, too.

    python benchmarks/learner.py

A run is trained on tinyshakespeare. From its checkpoint a learner reads the beginning of the German Genesis, and then
articles of Wikipedia, both of the shared data, in three ways. Printed are bits per byte of text that no learner read,
the last tenth of each domain, before and after each stage; and how far what was old in a stage stands above the lowest
that it had before, by that text and by the one that the gate measures with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from contest import Row, machine, options, publish, say

import homespun as hs
from homespun.config import override
from homespun.learn.autonomous import Learner, Limits
from homespun.learn.settings import LearnConfig
from homespun.train.log import PlainConsole

WAYS = {
    "as it comes: replay and gate": [],
    "the gate, no replay": ["replay=0"],
    "neither": ["replay=0", "gate=false"],
}
SETTINGS = ["model.width=96", "model.layers=3", "tokenizer.kind=bpe", "tokenizer.size=1024", "train.batch_tokens=2048",
            "train.compile=off"]  # fmt: skip
DOMAINS = ("corpus", "german", "wikipedia")
SHARES = 10  # of which the last one is for the test


def main() -> None:
    """Trains, learns in each way, and publishes a table."""
    parser = options(__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--steps", type=int, default=300, help="of the first training")
    parser.add_argument("--characters", type=int, default=60_000, help="of German; twice as many of Wikipedia")
    parser.add_argument(
        "--learn", nargs="*", default=["tries=2", "cycle_tokens=8192"], help="KEY=VALUE of all learners"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="the ways with this word in their name")
    parser.add_argument("--out", type=Path, help="keeps the runs in this folder; a way that is there is not done again")
    given = parser.parse_args()
    about = machine() | {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        found = {name: told(name, given, given.out or Path(folder)) for name in WAYS if given.only in name}
    about |= {"recipe": given.recipe, "steps": given.steps, "learn": " ".join(given.learn)}
    publish(given.results, "Learning three domains in turn", table(found), about)


def told(name: str, given: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    """The story of one way to learn."""
    place = out / re.sub(r"\W+", "-", name)
    kept = place / "story.json"
    if not kept.is_file():
        texts = texts_of(given.shared, given.characters, out)
        recipe = hs.recipe(given.recipe, *SETTINGS, f"train.steps={given.steps}")
        first = hs.train(str(texts["corpus"][0]), recipe, out / "shakespeare", console=PlainConsole(quiet=True))
        shutil.copytree(first.folder, place, ignore=shutil.ignore_patterns(".lock"))
        kept.write_text(json.dumps(story(place, texts, [*WAYS[name], *given.learn])), encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def texts_of(shared: Path, characters: int, out: Path) -> dict[str, tuple[Path, Path]]:
    """The files of each domain: what is learned, and the last tenth, which nobody learns."""
    out.mkdir(parents=True, exist_ok=True)
    whole = {
        "corpus": (shared / "tinyshakespeare.txt").read_text(encoding="utf-8"),
        "german": (shared / "genesis" / "german.txt").read_text(encoding="utf-8")[:characters],
        "wikipedia": "\n\n".join(articles(shared))[: 2 * characters],
    }
    found = {}
    for name, text in whole.items():
        end = text.rindex("\n", 0, len(text) * (SHARES - 1) // SHARES)
        found[name] = (out / f"{name}.txt", out / f"{name}-test.txt")
        for place, part in zip(found[name], (text[:end], text[end:]), strict=True):
            place.write_text(part, encoding="utf-8")
    return found


def articles(shared: Path) -> list[str]:
    """Articles of Wikipedia; without pyarrow those of WikiText-2, which is Wikipedia, too."""
    try:
        from pyarrow import parquet
    except ImportError:
        say("without pyarrow the articles are those of WikiText-2: pip install pyarrow")
        whole = (shared / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
        return re.split(r"^(?= = [^=\n]+ = *$)", whole, flags=re.MULTILINE)
    return list(parquet.read_table(shared / "wikipedia" / "wikipedia_en_sample.parquet")["text"].to_pylist())


def story(place: Path, texts: dict[str, tuple[Path, Path]], settings: list[str]) -> list[dict[str, Any]]:
    """Learns German, then Wikipedia; the figures before, and after each."""
    rows: list[dict[str, Any]] = [{"stage": "at first", "bits": bits(place, texts)}]
    for stage in DOMAINS[1:]:
        run = hs.load(place)
        learner = Learner(place, run.recipe, run.tokenizer, run.model, override(LearnConfig(), settings))
        done = asyncio.run(learner.run([f"{stage}={texts[stage][0]}"], Limits()))
        rises = gated(learner)
        learner.close()
        rows.append({"stage": stage, "kept": done.kept, "refused": done.refused, "gate": rises})
        rows[-1]["bits"] = bits(place, texts)
    return rows


def bits(place: Path, texts: dict[str, tuple[Path, Path]]) -> dict[str, float]:
    """Bits per byte of the run on the test text of each domain."""
    run = hs.load(place)
    return {name: run.evaluate([test])["text"]["bits_per_byte"] for name, (_, test) in texts.items()}


def gated(learner: Learner) -> dict[str, float]:
    """How far each domain stands above the lowest loss it had, as the gate has it: a share."""
    cycles = learner.journal.rows("SELECT figures FROM cycles WHERE state = 'kept' ORDER BY id")
    drift = dict(learner.journal.rows("SELECT domain, value FROM drift ORDER BY cycle"))
    last = json.loads(cycles[-1]["figures"])["after"] if cycles else {}
    return {name: drift[name] / (each["loss"] - drift[name]) for name, each in last.items() if name in drift}


def table(found: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Bits per byte, and what became of the new and the old."""
    lines: list[Row] = []
    for name, rows in found.items():
        for number, domain in enumerate(DOMAINS):
            line = [row["bits"][domain] for row in rows]
            rises = [line[place] / min(line[number:place]) - 1 for place in range(number + 1, len(line))]
            gate = [row["gate"][domain] for row in rows[number + 1 :] if domain in row["gate"]]
            row: Row = {"way": name, "domain": domain}
            for place, stage in enumerate(DOMAINS):
                row[f"after {stage.capitalize()}" if place else "at first"] = f"{line[place]:.3f}"
            row["new: fell by"] = f"{1 - line[number] / line[number - 1]:.1%}" if number else None
            row["old: rose by"] = f"{max(rises):+.1%}" if rises else None
            row["as the gate saw it"] = f"{max(gate):+.1%}" if gate else None
            row["cycles kept + refused"] = f"{rows[number]['kept']} + {rows[number]['refused']}" if number else None
            lines.append(row)
    return lines


if __name__ == "__main__":
    main()
