"""The sizes of model that all contestants build, each in its own way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """rows: of a batch in training."""

    layers: int
    width: int
    heads: int
    context: int
    rows: int
    vocab: int

    def __str__(self) -> str:
        words = f"{self.layers} layers, width {self.width}, {self.heads} heads, context {self.context}"
        return f"{words}, {self.rows} rows, vocabulary {self.vocab:,}"


SIZES = {
    "10m": Size(layers=6, width=384, heads=6, context=256, rows=16, vocab=65),
    "1m": Size(layers=4, width=128, heads=4, context=64, rows=12, vocab=65),  # nanoGPT's quick start on a CPU
    "124m": Size(layers=12, width=768, heads=12, context=1024, rows=1, vocab=50257),  # GPT-2
    "tiny": Size(layers=1, width=32, heads=2, context=16, rows=2, vocab=65),  # for the tests
}
