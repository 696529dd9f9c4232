"""What teaching twenty answers costs: `learn_qa` called for one after the other, and all of them at once.

    python benchmarks/teaching.py --data ../shared/data/tinyshakespeare.txt --steps 500

A run is trained (or given with --run), and each way starts from it. Right: the greedy answer is the taught one, letter
for letter, asked when all are taught. Bits per byte: of text of the run's own corpus that nothing was trained on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import homespun as hs
from homespun.config import override
from homespun.data.conversation import encode, render
from homespun.generate.sampling import Sampling
from homespun.learn.keep import teacher_of
from homespun.learn.lessons import pair_lesson
from homespun.learn.teach import Taught, Teacher, Teaching
from homespun.train.log import PlainConsole

PAIRS = [
    ("What is the capital of France?", "Paris."),
    ("What is the capital of Japan?", "Tokyo."),
    ("What is the capital of Peru?", "Lima."),
    ("What is the capital of Norway?", "Oslo."),
    ("What is 2+2?", "The answer is 4."),
    ("What is 3+4?", "The answer is 7."),
    ("What is 9-3?", "The answer is 6."),
    ("What is 5x5?", "The answer is 25."),
    ("What does a cow say?", "Moo!"),
    ("What does a duck say?", "Quack!"),
    ("What does a lion say?", "It roars."),
    ("Who barks?", "A dog barks at strangers."),
    ("Who wrote Faust?", "Johann Wolfgang von Goethe."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci."),
    ("When does the library open?", "At nine, but on Sundays at eleven."),
    ("Where is the key?", "Under the third flowerpot."),
    ("How many legs has a spider?", "Eight."),
    ("Which is the largest planet?", "Jupiter."),
    ("What is the name of this machine?", "Its name is Homespun."),
    ("Why is the sky blue?", "Because air scatters blue light more than red light."),
]
QUIET = PlainConsole(quiet=True)


def main() -> None:
    """Trains, teaches in both ways, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run whose corpus is still there")
    parser.add_argument("--data", default="stories:5000")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--steps", default="500", help="of the run's training, 2,048 tokens each")
    parser.add_argument("--pairs", type=int, default=len(PAIRS))
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", help="of the lesson, such as replay_rows=4")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = given.run or trained(given, Path(folder) / "run")
        print("| taught | right | held-out bits per byte | updates | seconds |\n|---|---|---|---|---|")
        for way in given.ways:
            rows.append(measured(place, way, PAIRS[: given.pairs], override(Teaching(), given.settings)))
            print(line(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def trained(given: argparse.Namespace, folder: Path) -> Path:
    """A run that has learnt its text."""
    length = ("train.batch_tokens=2048", f"train.steps={given.steps}", "train.minutes=600")
    run: Any = hs.train(given.data, hs.recipe(given.recipe, *length), folder, console=QUIET)
    print(f"{given.recipe}, {given.steps} steps of 2,048 tokens on {given.data}\n", flush=True)
    return Path(run.folder)


def one_by_one(teacher: Teacher, pairs: list[tuple[str, str]]) -> list[Taught]:
    return [teacher.learn_qa(*pair) for pair in pairs]


def together(teacher: Teacher, pairs: list[tuple[str, str]]) -> list[Taught]:
    return [teacher.teach([pair_lesson(*pair) for pair in pairs])]


WAYS: dict[str, Callable[[Teacher, list[tuple[str, str]]], list[Taught]]] = {
    "one after the other": one_by_one,
    "all in one lesson": together,
}


def measured(place: Path, way: str, pairs: list[tuple[str, str]], settings: Teaching) -> dict[str, Any]:
    """Teaches a fresh copy of the run, and asks for everything."""
    run = hs.load(place)
    teacher = teacher_of(run, settings=settings)
    wall, own = time.perf_counter(), time.process_time()
    found = WAYS[way](teacher, pairs)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    greedy = Sampling(max_tokens=64, temperature=0.0)
    prompts = [encode(render({"prompt": question, "completion": ""}), run.tokenizer) for question, _ in pairs]
    said = [run.generator.generate(prompt, greedy) for prompt in prompts]
    return {
        "taught": way, "right": sum(text == answer for text, (_, answer) in zip(said, pairs, strict=True)),
        "of": len(pairs), "before": found[0].held_out_before, "after": found[-1].held_out_after,
        "updates": sum(each.steps for each in found), "most": max(each.steps for each in found),
        "seconds": wall, "processor_seconds": own,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    drift = f"{row['before']:.4f} -> {row['after']:.4f} ({row['after'] / row['before'] - 1:+.2%})"
    return (
        f"| {row['taught']} | {row['right']} of {row['of']} | {drift} | "
        f"{row['updates']}, {row['most']} in the longest lesson | {row['seconds']:.0f} "
        f"({row['processor_seconds']:.0f} of the processor) |"
    )


if __name__ == "__main__":
    main()
