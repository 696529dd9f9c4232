"""Homespun trains small language models from scratch on your own text.

import homespun as hs

recipe = hs.recipe("house-tiny", "train.minutes=2")
run = hs.train("my.txt", recipe, out="runs/mine")
print(run.generate("Once", max_tokens=50))

Importing this package imports nothing heavy: each public name is fetched when it is first asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Threads of GNU's OpenMP that wait for each other spin for milliseconds by default. With any company on the cores that
# makes two threads 30 times slower; spinning for microseconds costs nothing when alone. It is read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

_PUBLIC = {
    "recipe": "homespun.run",
    "recipes": "homespun.run",
    "load": "homespun.run",
    "export": "homespun.run",
    "import_model": "homespun.run",
    "tune": "homespun.run",
    "plan": "homespun.run",
    "bench": "homespun.run",
    "prepare": "homespun.run",
    "Run": "homespun.run",
    "Decoder": "homespun.model.decoder",
    "LoRA": "homespun.model.lora",
    "teach": "homespun.learn.keep",
    "learn_thoughts": "homespun.learn.thoughts",
    "ThoughtState": "homespun.generate.thought",
    "LatentDecoder": "homespun.generate.thought",
    "Hybrid": "homespun.generate.hybrid",
    "Recipe": "homespun.train.recipe",
    "Generator": "homespun.generate.engine",
    "Embedder": "homespun.generate.embedder",
    "Sampling": "homespun.generate.sampling",
    "Index": "homespun.retrieve.index",
    "Grounding": "homespun.retrieve.prompt",
    "HomespunError": "homespun.errors",
}

__all__ = ["__version__", "train", *_PUBLIC]

if TYPE_CHECKING:
    from homespun.errors import HomespunError as HomespunError
    from homespun.generate.embedder import Embedder as Embedder
    from homespun.generate.engine import Generator as Generator
    from homespun.generate.hybrid import Hybrid as Hybrid
    from homespun.generate.sampling import Sampling as Sampling
    from homespun.generate.thought import LatentDecoder as LatentDecoder
    from homespun.generate.thought import ThoughtState as ThoughtState
    from homespun.learn.keep import teach as teach
    from homespun.learn.thoughts import learn_thoughts as learn_thoughts
    from homespun.model.decoder import Decoder as Decoder
    from homespun.model.lora import LoRA as LoRA
    from homespun.retrieve.index import Index as Index
    from homespun.retrieve.prompt import Grounding as Grounding
    from homespun.run import Run as Run
    from homespun.run import bench as bench
    from homespun.run import export as export
    from homespun.run import import_model as import_model
    from homespun.run import load as load
    from homespun.run import plan as plan
    from homespun.run import prepare as prepare
    from homespun.run import recipe as recipe
    from homespun.run import recipes as recipes
    from homespun.run import train as train
    from homespun.run import tune as tune
    from homespun.train.recipe import Recipe as Recipe


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module("homespun.train")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'homespun' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _TrainRoom(ModuleType):
    """The package `homespun.train` shares its name with the function `train`: called, it is that function."""

    def __call__(self, *arguments: Any, **named: Any) -> Run:
        return importlib.import_module("homespun.run").train(*arguments, **named)


class _Package(ModuleType):
    """Makes `homespun.train` callable at the moment the import system sets it, whoever imports it first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" and isinstance(value, ModuleType):
            value.__class__ = _TrainRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
