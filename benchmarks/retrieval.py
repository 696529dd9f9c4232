"""How often an index finds the passage that answers a question: 500 questions of BoolQ, one right passage each.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --run runs/joint

A document is found where the best of its passages stands. Beside the index stand BM25 over whole documents and, with a
run, its vectors of whole documents.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from contest import Row, machine, options, publish

import homespun as hs
from homespun.evaluate.embeddings import Retrieval, ranking_figures, retrieval
from homespun.evaluate.tasks import read_retrieval

FOUND = 100  # passages of each question


def main() -> None:
    """Prints and publishes recall, MRR and nDCG of each way to search."""
    parser = options(__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--run", type=Path, help="a run that makes vectors")
    given = parser.parse_args()
    task = read_retrieval(given.shared / "retrieval_boolq_dev")
    run = hs.load(given.run) if given.run is not None else None
    whole = retrieval(task, run.embed if run is not None else None)
    found = {"index, words": figures(task, None)}
    if run is not None:
        found |= {"index, words and meaning": figures(task, run), "vectors of whole documents": whole["model"]}
    found["BM25 of whole documents"] = whole["bm25"]
    rows: list[Row] = [
        {"search": name} | {key: f"{value:.3f}" for key, value in each.items()} for name, each in found.items()
    ]
    held = {"questions": len(task.questions), "documents": len(task.passages)}
    publish(given.results, "Retrieval, BoolQ", rows, machine() | held)


def figures(task: Retrieval, run: hs.Run | None) -> dict[str, float]:
    """Of an index of the documents, in which the place of a passage is the number of its document."""
    scores = np.full((len(task.questions), len(task.passages)), -np.inf)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "documents.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in task.passages), encoding="utf-8")
        index = hs.Index.build(data, Path(folder) / "index", run)
        print(f"meaning counts {index.weight} beside words", file=sys.stderr)
        for row, question in enumerate(task.questions):
            for passage in index.retrieve(question, FOUND):
                document = int(passage.place) - 1
                scores[row, document] = max(scores[row, document], passage.score)
    return ranking_figures(scores, task.answers)


if __name__ == "__main__":
    main()
