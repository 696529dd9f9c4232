"""Instruction tuning: a trained model learns to answer, with all its weights or with an adapter alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from homespun.errors import ConfigError
from homespun.learn.conversations import read_conversations
from homespun.model.decoder import Decoder
from homespun.model.lora import LoRA, adapt, adaptable, adapter_tensors, load_adapters, merged
from homespun.objectives import NextToken
from homespun.optim import AdamW
from homespun.optim.schedule import WarmupStableDecay
from homespun.train import parallel
from homespun.train.folder import note_environment, open_folder
from homespun.train.log import Console
from homespun.train.machine import keep_memory
from homespun.train.progress import Summary
from homespun.train.recipe import Recipe, TrainConfig, Tuned
from homespun.train.saved import Trained
from homespun.train.trainer import Trainer

RATE, ADAPTER_RATE = 3e-4, 2e-3
"""Learning rates of all weights, and of an adapter."""

FEW = 50  # steps, below which so much is said


def tuned_recipe(base: Trained, adapter: LoRA | None) -> Recipe:
    """How a run is tuned, unless its settings are changed: three passes, AdamW without decay."""
    return Recipe(
        name=f"{base.recipe.name}-tuned",
        model=base.recipe.model,
        tokenizer=base.recipe.tokenizer,
        objective=NextToken(),
        optimizer=AdamW(
            learning_rate=ADAPTER_RATE if adapter else RATE,
            weight_decay=0.0,
            schedule=WarmupStableDecay(warmup=0.1),  # a run may be short
        ),
        # rows of many lengths: a compiler would start anew for each
        train=TrainConfig(epochs=3, batch_tokens=4096, compile="off", seed=base.recipe.train.seed),
        tuned=Tuned(base=str(base.folder), step=base.step, adapter=adapter),
    )


def tune(base: Trained, recipe: Recipe, pairs: Sequence[str | Path], folder: Path, console: Console) -> Summary:
    """Tunes a copy of `base` on conversations, in the run folder `folder`, going on from its newest checkpoint.

    The first rows of its metrics tell how the base answers. Raises `HomespunError`s for what a user can mend.
    """
    _check(base, recipe, folder)
    keep_memory()
    world = parallel.join()
    fraction, context = recipe.data.validation_fraction, recipe.model.context
    found = read_conversations(
        pairs, base.tokenizer, context, fraction, console.preparing, console.note if world.leader else None
    )
    if world.leader:
        open_folder(folder, recipe, found, list(map(str, pairs)))
    world.wait()
    torch.manual_seed(recipe.train.seed)
    model = Decoder(recipe.model)
    model.load_state_dict(base.model.state_dict())
    kind: type[Trainer] = Trainer
    if recipe.tuned is not None and recipe.tuned.adapter is not None:
        kind = AdapterTrainer
        adapt(model, recipe.tuned.adapter)
    trainer = kind(recipe, model, found, folder, world, console)
    trainer.progress.advised = True  # how much text a size needs is another question
    if world.leader:
        note_environment(folder, precision=trainer.updater.precision.name, processes=world.size)
    if trainer.progress.step == 0:
        trainer.evaluate()
        if recipe.train.epochs and (said := few_steps(trainer.budget.total, recipe.train.batch_tokens)):
            trainer.advise(said)
        if kind is AdapterTrainer and not knows_end(base.model, base.tokenizer.end):
            trainer.advise("The base never learnt the token that ends a text, and an adapter leaves it as it is: "
                           "answers may go on and on. Tune all weights instead.")  # fmt: skip
    summary = trainer.fit()
    parallel.leave()
    return summary


def few_steps(steps: int | None, batch_tokens: int) -> str | None:
    """What can be said where the budget gives but a few `steps` of so many tokens; none: not known yet."""
    if steps is None or steps >= FEW:
        return None
    smaller = max(128, 2 ** (max(1, batch_tokens * steps // FEW).bit_length() - 1))
    more = f"smaller steps with train.batch_tokens={smaller}" if smaller < batch_tokens else "more rows"
    return f"{steps:,} step{'s are' if steps > 1 else ' is'} few to learn in: try more passes with --epochs, or {more}."


@torch.no_grad()
def knows_end(model: Decoder, end: int) -> bool:
    """Whether the output tells the `end` from all other tokens: those that were never learnt all point one way."""
    near = torch.cosine_similarity(model.head_weight.float(), model.head_weight[end].float(), dim=1) > 0.99
    return int(near.sum()) == 1


class AdapterTrainer(Trainer):
    """Trains the adapters of a model. Its checkpoints hold the merged model, and the adapters by themselves."""

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The merged model, and `adapter`."""
        return {"model": merged(self.model), "adapter": adapter_tensors(self.model)}

    def load_weights(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Takes the adapters; the model below them is the base's and never changes."""
        load_adapters(self.model, files["adapter"])


def _check(base: Trained, recipe: Recipe, folder: Path) -> None:
    if folder.resolve() == base.folder.resolve():
        raise ConfigError(f"{folder} is the run that is to be tuned", "Name another folder with --out.")
    model = recipe.model.model_copy(update={"dropout": base.recipe.model.dropout})
    if model != base.recipe.model or recipe.tokenizer != base.recipe.tokenizer:
        raise ConfigError("Tuning changes neither architecture nor tokenizer", "Change settings of training only.")
    if recipe.objective.kind != "next_token":
        raise ConfigError(f"Answers are not learnt with objective.kind = {recipe.objective.kind}", "Leave it out.")
    if recipe.data.mixture:
        raise ConfigError("Answers are not drawn from data.mixture", "Name their files, each as often as it counts.")
    adapter = recipe.tuned.adapter if recipe.tuned is not None else None
    if adapter is not None and recipe.optimizer.qk_clip is not None:
        raise ConfigError("optimizer.qk_clip changes weights that an adapter leaves alone", "Leave it out.")
    if adapter is not None:
        adaptable(base.model, adapter)
