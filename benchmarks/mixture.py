"""Six languages in one model: what each costs when it is drawn by its size, by weights, or at a temperature.

    python benchmarks/mixture.py --steps 600

The parts are the six Genesis texts of the shared data, English in full and the others cut to a share of
theirs, so that sizes differ. Each run has the same budget, vocabulary and validation text.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import homespun as hs
from homespun.train.log import PlainConsole, read_metrics

LANGUAGES = {
    "english": "english-web",
    **{name: name for name in ("finnish", "french", "german", "portuguese", "swedish")},
}
SETTINGS = ["tokenizer.kind=bpe", "tokenizer.size=1024", "train.batch_tokens=4096", "train.compile=off"]


def main() -> None:
    """Trains and prints a table of bits per byte."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--steps", default="600")
    parser.add_argument("--kept", type=float, default=0.15, help="share of the other languages' text")
    parser.add_argument("settings", nargs="*", help="key=value of all runs")
    given = parser.parse_args()
    ways = {
        "by size": [],
        "temperature 2": ["data.temperature=2"],
        "temperature 100": ["data.temperature=100"],
        "english 5 to 1": [f"data.mixture.{name}.weight={5 if name == 'english' else 1}" for name in LANGUAGES],
    }
    with tempfile.TemporaryDirectory() as folder:
        sources = texts(given.shared, Path(folder), given.kept)
        rows = {}
        for number, (way, more) in enumerate(ways.items()):
            settings = [*SETTINGS, f"train.steps={given.steps}", *sources, *more, *given.settings]
            run = hs.train(
                [], hs.recipe(given.recipe, *settings), Path(folder) / f"run{number}", console=PlainConsole(quiet=True)
            )
            last = [row for row in read_metrics(run.folder / "metrics.jsonl") if "sources" in row][-1]
            rows[way] = {name: part["bits_per_byte"] for name, part in last["sources"].items()}
            print(way, rows[way], flush=True)
    print("| bits per byte |", " | ".join(LANGUAGES), "| mean |")
    print("|---" * (len(LANGUAGES) + 2) + "|")
    for way, bits in rows.items():
        mean = sum(bits.values()) / len(bits)
        print(f"| {way} |", " | ".join(f"{bits[name]:.3f}" for name in LANGUAGES), f"| {mean:.3f} |")


def texts(shared: Path, folder: Path, kept: float) -> list[str]:
    """The settings that name the parts: to train on, English but for its end, of the others the first `kept` of that;
    to measure, the last tenth of each."""
    settings = []
    for name, file in LANGUAGES.items():
        text = (shared / "genesis" / f"{file}.txt").read_text(encoding="utf-8")
        end = round(0.9 * len(text))
        place = folder / name
        place.mkdir()
        (place / "train.txt").write_text(text[: end if name == "english" else round(kept * end)], encoding="utf-8")
        (place / "valid.txt").write_text(text[end:], encoding="utf-8")
        settings.append(f"data.mixture.{name}.source={place}")
    return settings


if __name__ == "__main__":
    main()
