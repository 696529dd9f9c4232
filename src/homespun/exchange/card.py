"""The model card: what the run's own files say, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import homespun
from homespun.exchange.files import escape
from homespun.exchange.layout import Layout
from homespun.exchange.memory import Imported
from homespun.model.cost import cost
from homespun.train.folder import environment_of
from homespun.train.log import read_metrics
from homespun.train.recipe import Recipe

_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- homespun
---

# {name}

A causal language model of {parameters:,} parameters ({architecture}), exported from a run of
Homespun {version}{origin}.

| | |
|---|---|
"""

_USE = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
```
"""


def card(folder: Path, recipe: Recipe, step: int, layout: Layout, memory: Imported | None) -> str:
    """README.md for a run at a step."""
    model = recipe.model
    rows = {
        "layers": model.layers,
        "width": model.width,
        "context": f"{model.context:,} tokens",
        "vocabulary": f"{model.vocab:,} tokens",
        **_training(folder, step),
    }
    origin = ""
    if memory is not None:
        origin = (
            f", which was imported from {escape(memory.source)}; what is\nsaid below about training is what came after"
        )
    head = _HEAD.format(
        name=escape(recipe.name),
        parameters=cost(model).parameters,
        architecture=layout.architecture,
        version=homespun.__version__,
        origin=origin,
    )
    return head + "".join(f"| {name} | {value} |\n" for name, value in rows.items()) + _USE


def _training(folder: Path, step: int) -> dict[str, str]:
    """What the metrics and the environment tell; what they do not tell is left out."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if _upto(row, step)]
    about = environment_of(folder)
    said: dict[str, str] = {}
    names = about.get("data")
    if isinstance(names, list) and names:
        said["trained on"] = escape(", ".join(_name(str(name)) for name in names))
    if step:
        said["step"] = f"{step:,}"
    if trained := [row for row in rows if row.get("tokens") is not None]:
        said["tokens read"] = f"{trained[-1]['tokens']:,}"
        device = about.get("cpu") if about.get("device") == "cpu" else about.get("device")
        said["training time"] = f"{trained[-1]['seconds']:,.0f} s" + (f" on {escape(str(device))}" if device else "")
    if measured := [row for row in rows if row.get("validation_loss") is not None]:
        said |= _measured(measured[-1])
    return said


def _measured(row: Mapping[str, Any]) -> dict[str, str]:
    place = f"(at step {row['step']:,})"
    said = {"validation loss": f"{row['validation_loss']:.4f} nats per token {place}"}
    bits = row.get("validation_bits_per_byte")
    return said | ({"validation bits per byte": f"{bits:.4f} {place}"} if bits is not None else {})


def _upto(row: Mapping[str, Any], step: int) -> bool:
    return isinstance(row.get("step"), int) and row["step"] <= step


def _name(source: str) -> str:
    """The last part of a path: where a text stood on a machine is nobody's business."""
    return source if source.endswith(":") or "/" not in source.rstrip("/") else Path(source).name
