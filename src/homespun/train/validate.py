"""Loss, perplexity and bits per byte on held-out text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homespun.data.batches import Batch
from homespun.data.material import Material
from homespun.model.decoder import Decoder
from homespun.objectives.metrics import bits_per_byte, perplexity
from homespun.train.parallel import World
from homespun.train.precision import Precision
from homespun.train.recipe import Recipe


class Validation:
    """Measures a model on the validation side of a corpus; the processes share the work."""

    def __init__(self, recipe: Recipe, corpus: Material, world: World, rows: int):
        self.recipe, self.corpus, self.world, self.rows = recipe, corpus, world, rows
        self.objective = recipe.objective.build()
        self.token_bytes = torch.from_numpy(corpus.tokenizer.token_bytes()).to(world.device)

    @torch.no_grad()
    def __call__(self, model: Decoder, precision: Precision) -> dict[str, Any]:
        """Mean loss (nats per token), bits per byte of text and perplexity; nothing if there is no validation text.

        For a mixture also `sources`: loss and bits per byte of each part by its name.
        """
        train, context = self.recipe.train, self.recipe.model.context
        sums: dict[str, Tensor] = {}  # nats, tokens, bytes of each part
        model.eval()
        for index, (part, batch) in enumerate(self.corpus.validation(context, self.rows, train.evaluate_tokens)):
            sums.setdefault(part, torch.zeros(3, dtype=torch.float64, device=self.world.device))
            if index % self.world.size == self.world.rank:
                sums[part] += self._measure(model, batch.to(self.world.device), precision)
        model.train()
        if not sums:
            return {}
        table = self.world.sum(torch.stack(list(sums.values())))  # (P, 3)
        nats, tokens, text_bytes = table.sum(0).tolist()
        if not tokens:
            return {}
        parts = {name: row for name, row in zip(sums, table.tolist(), strict=True) if name and row[1]}
        return {
            "validation_loss": nats / tokens,
            "validation_bits_per_byte": bits_per_byte(nats, text_bytes),
            "validation_perplexity": perplexity(nats, tokens),
        } | ({"sources": {name: _figures(*row) for name, row in parts.items()}} if parts else {})

    def _measure(self, model: Decoder, batch: Batch, precision: Precision) -> Tensor:
        """Nats, targets and bytes of a batch, (3,)."""
        with precision.autocast(self.world.device):
            losses = self.objective(model, batch)
        text = self.token_bytes[batch.targets[batch.targets >= 0]].sum().double()
        return torch.stack([losses.loss.double(), text.new_tensor(float(losses.count)), text])


def _figures(nats: float, tokens: float, text_bytes: float) -> dict[str, float]:
    return {"loss": nats / tokens, "bits_per_byte": bits_per_byte(nats, int(text_bytes))}
