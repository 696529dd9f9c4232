"""Many languages in one model: what each costs when it is drawn by its size, at a temperature, or as often as others.

    python benchmarks/mixture.py
    python benchmarks/mixture.py genesis --steps 300

genesis: six languages, English in full, of the others 15 %. udhr: the Universal Declaration of Human Rights in 37
languages; in six of them the Genesis text stands beside it, so that a few parts are large and most are tiny. The end of
each text is held out: of Genesis a tenth, of the declaration a fifth. All runs of an experiment have the same budget
in steps, vocabulary and held-out text; bits per byte, of UTF-8, are those at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from contest import Row, machine, options, publish, say

import homespun as hs
from homespun.train.log import PlainConsole, read_metrics

GENESIS = {
    "english": "english-web",
    **{name: name for name in ("finnish", "french", "german", "portuguese", "swedish")},
}
BOTH = {"eng": "english", "fin": "finnish", "fra": "french", "deu_1901": "german", "por_BR": "portuguese"}
BOTH["swe"] = "swedish"
KEPT = 0.15
SMALL = ["model.width=96", "model.layers=2", "train.batch_tokens=2048", "train.compile=off", "train.precision=fp32"]


@dataclass(frozen=True)
class Text:
    """What is read of a language, and what is held out."""

    train: str
    valid: str


def main() -> None:
    """Trains, prints and publishes a table of bits per byte for each experiment."""
    parser = options(__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--steps", type=int, help="of every run; 120 for genesis and 200 for udhr if not given")
    parser.add_argument("experiments", nargs="*", metavar="genesis, udhr", help="all if none is named")
    given = parser.parse_args()
    for name in given.experiments or ["genesis", "udhr"]:
        about = machine() | {"torch": torch.__version__}
        read, size, steps = (genesis, 1024, 120) if name == "genesis" else (udhr, 2048, 200)
        texts, steps = read(given.shared), given.steps or steps
        bits = {}
        for way, settings in ways(texts).items():
            budget = [f"train.{key}={steps}" for key in ("steps", "evaluate_every", "sample_every")]
            vocabulary = ["tokenizer.kind=bpe", f"tokenizer.size={size}"]
            bits[way] = trained(texts, hs.recipe(given.recipe, *SMALL, *vocabulary, *budget), settings)
            say(f"{name}, {way}: {sum(bits[way].values()) / len(bits[way]):.3f} on average")
        held = {"recipe": given.recipe, "steps of 2,048 tokens": steps, "vocabulary": size}
        publish(given.results, f"Mixtures, {name}", table(texts, bits), about | held)


def ways(texts: Mapping[str, Text]) -> dict[str, list[str]]:
    """The settings of each way to draw."""
    return {
        "by size": [],
        "temperature 2": ["data.temperature=2"],
        "temperature 3.3": ["data.temperature=3.3"],
        "uniform": [f"data.mixture.{name}.weight=1" for name in texts],
    }


def trained(texts: Mapping[str, Text], recipe: hs.Recipe, settings: Sequence[str]) -> dict[str, float]:
    """Bits per byte of each language's held-out text after a run of this recipe."""
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for name, text in texts.items():
            place = Path(folder) / name
            place.mkdir()
            (place / "train.txt").write_text(text.train, encoding="utf-8")
            (place / "valid.txt").write_text(text.valid, encoding="utf-8")
            parts.append(f"data.mixture.{name}.source={place}")
        run = hs.train([], hs.recipe(recipe, *parts, *settings), Path(folder) / "run", console=PlainConsole(quiet=True))
        last = [row["sources"] for row in read_metrics(run.folder / "metrics.jsonl") if "sources" in row][-1]
        return {name: last[name]["bits_per_byte"] for name in texts}


def table(texts: Mapping[str, Text], bits: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """A row for each language, the largest first, and means: of all, and of the large and the small ones."""
    size = {name: len(text.train.encode()) for name, text in texts.items()}
    languages = sorted(texts, key=lambda name: -size[name])
    small = [name for name in languages if size[name] <= 100_000]
    large = [name for name in languages if size[name] > 100_000]
    groups = {name: [name] for name in languages}
    for told, chosen in (("large", large), ("small", small), ("languages", languages)):
        if len(chosen) > 1:
            groups[f"mean of the {len(chosen)} {told}"] = chosen
    return [
        {"language": told, "KB": round(sum(size[name] for name in names) / len(names) / 1000)}
        | {way: f"{sum(found[name] for name in names) / len(names):.3f}" for way, found in bits.items()}
        for told, names in groups.items()
    ]


def genesis(shared: Path) -> dict[str, Text]:
    """Six languages, one of them large."""
    return {
        name: cut(text_of(shared / "genesis" / f"{file}.txt"), 0.1, 1.0 if name == "english" else KEPT)
        for name, file in GENESIS.items()
    }


def udhr(shared: Path) -> dict[str, Text]:
    """37 languages, six of them large."""
    found = {path.stem: cut(text_of(path), 0.2) for path in sorted((shared / "udhr").glob("*.txt"))}
    for name, more in BOTH.items():
        added = text_of(shared / "genesis" / f"{GENESIS[more]}.txt")
        found[name] = Text(f"{found[name].train}\n\n{added}", found[name].valid)
    return found


def cut(text: str, held: float, kept: float = 1.0) -> Text:
    """The last share of a text to measure with, the first share of the rest to learn from."""
    end = round((1 - held) * len(text))
    return Text(text[: round(kept * end)], text[end:])


def text_of(path: Path) -> str:
    """A text of the shared data."""
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
