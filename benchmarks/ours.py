"""Our side as contestants: a training step through the same `Updater` that a run uses, decoding through `Generator`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from contest import Row, Work, serve
from sizes import Size
from validation import mean_loss

import homespun as hs
from homespun.data.batches import Batch
from homespun.data.vocabulary import Bytes
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import GELU, ReLU2
from homespun.model.norms import LayerNorm
from homespun.model.positions import LearnedPositions
from homespun.optim import AdamW, Muon, Optimizer
from homespun.train.compiling import Compiling
from homespun.train.machine import keep_memory
from homespun.train.parallel import World
from homespun.train.precision import choose
from homespun.train.recipe import Recipe, TrainConfig
from homespun.train.update import Updater


def house(size: Size) -> ModelConfig:
    """The parts of our own family: rotary positions, RMSNorm, ReLU2, normed queries and keys."""
    return _model(
        size, attention=GroupedAttention(heads=size.heads, qk_norm=True), feed_forward=ReLU2(), initialize="zero"
    )


def gpt2(size: Size) -> ModelConfig:
    """The peers' architecture: learned positions, LayerNorm, GELU, no biases in the products."""
    attention = GroupedAttention(heads=size.heads)
    return _model(size, attention=attention, feed_forward=GELU(), norm=LayerNorm(), positions=LearnedPositions())


def _model(size: Size, **parts: Any) -> ModelConfig:
    return ModelConfig(vocab=size.vocab, width=size.width, layers=size.layers, context=size.context, **parts)


MODELS = {"house": house, "gpt2": gpt2}
OPTIMIZERS: dict[str, Optimizer] = {"adamw": AdamW(learning_rate=1e-3), "muon": Muon()}


def train(settings: Row) -> Work:
    """Steps of a run: the precision measured as a run does, the model compiled as a long run is."""
    keep_memory()
    size = Size(**settings["size"])
    recipe = Recipe(
        model=MODELS[settings["model"]](size),
        optimizer=OPTIMIZERS[settings["optimizer"]],
        train=TrainConfig(steps=100, batch_tokens=size.rows * size.context, compile=settings["compile"]),
    )
    text = torch.randint(size.vocab, (size.rows, size.context + 1))
    batch = Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous())
    model = hs.Decoder(recipe.model).train()
    world = World(0, 1, torch.device("cpu"))
    precision = choose(recipe.train.precision, model, batch.tokens.numel(), world)
    updater = Updater(recipe, model, world, precision, Compiling(recipe.train.compile, model, print), size.rows)

    def run(steps: int) -> int:
        for _ in range(steps):
            if not updater.step(batch, 50, 100).updated:
                raise RuntimeError("a step was not finite")
        return steps * batch.tokens.numel()

    return Work(run, 3, _about(model, precision.name))


def decode(settings: Row) -> Work:
    """Greedy continuation of `batch` prompts of `prompt` tokens."""
    size = Size(**settings["size"])
    tokenizer, _ = Bytes().build([], 0)
    model = hs.Decoder(MODELS[settings["model"]](size)).eval()
    generator = hs.Generator(model, tokenizer, **settings["generator"])
    generator.bias[tokenizer.end] = -torch.inf  # everyone writes the same number of tokens
    prompts = torch.randint(256, (settings["batch"], settings["prompt"])).tolist()

    def run(tokens: int) -> int:
        greedy = hs.Sampling(temperature=0.0, max_tokens=tokens)
        return sum(len(text.tokens) for text in generator.complete(prompts, greedy))

    return Work(run, settings["tokens"], _about(model))


def evaluate(settings: Row) -> Work:
    """The loss of a run on a text file, told at once."""
    run = hs.load(settings["run"])
    ids = run.tokenizer.encode(Path(settings["text"]).read_text(encoding="utf-8"))
    return Work(lambda amount: 0, 0, {"loss": mean_loss(run.model, ids, run.recipe.model.context)})


def _about(model: torch.nn.Module, *more: str) -> Row:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    remarks = ", ".join((f"{millions:.2f} M parameters", *more))
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "remarks": remarks}


TASKS = {"train": train, "decode": decode, "evaluate": evaluate}

if __name__ == "__main__":
    serve(lambda settings: TASKS[settings["task"]](settings))
