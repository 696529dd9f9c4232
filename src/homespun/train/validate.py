"""Loss, perplexity and bits per byte on held-out text."""

from __future__ import annotations

import torch

from homespun.data.batches import validation_batches
from homespun.data.corpus import Corpus
from homespun.model.decoder import Decoder
from homespun.objectives.metrics import bits_per_byte, perplexity
from homespun.train.parallel import World
from homespun.train.precision import Precision
from homespun.train.recipe import Recipe


class Validation:
    """Measures a model on the validation side of a corpus; the processes share the work."""

    def __init__(self, recipe: Recipe, corpus: Corpus, world: World, rows: int):
        self.recipe, self.split, self.world, self.rows = recipe, corpus.valid, world, rows
        self.objective = recipe.objective.build()
        self.token_bytes = torch.from_numpy(corpus.tokenizer.token_bytes()).to(world.device)

    @torch.no_grad()
    def __call__(self, model: Decoder, precision: Precision) -> dict[str, float]:
        """Mean loss (nats per token), bits per byte of text and perplexity; nothing if there is no validation text."""
        train, context = self.recipe.train, self.recipe.model.context
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)  # nats, tokens, bytes
        model.eval()
        for index, batch in enumerate(validation_batches(self.split, context, self.rows, train.evaluate_tokens)):
            if index % self.world.size != self.world.rank:
                continue
            batch = batch.to(self.world.device)
            with precision.autocast(self.world.device):
                losses = self.objective(model, batch)
            text = self.token_bytes[batch.targets[batch.targets >= 0]].sum()
            sums += torch.stack([losses.loss.double(), sums.new_tensor(float(losses.count)), text.double()])
        model.train()
        nats, tokens, text_bytes = self.world.sum(sums).tolist()
        if not tokens:
            return {}
        return {
            "validation_loss": nats / tokens,
            "validation_bits_per_byte": bits_per_byte(nats, text_bytes),
            "validation_perplexity": perplexity(nats, tokens),
        }
