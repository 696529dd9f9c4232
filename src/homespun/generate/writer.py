"""The decoder that a `Generator` writes with: the model itself, or one packed for decoding."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from homespun.errors import ConfigError
from homespun.model.decoder import Decoder
from homespun.model.packed import Packing, Weights, packed
from homespun.model.plain import plain


class Writer(Decoder):
    """A decoder for `hidden`, `logits` and `new_cache` alone, with packed matrices. The embedding is not packed."""

    def __init__(self, model: Decoder, weights: Weights):
        nn.Module.__init__(self)
        self.config, self.checkpoint_activations, self.training = model.config, False, False
        self.model = packed(model.model, Packing(weights))  # type: ignore[assignment]
        self.head = Packing("int8" if weights == "int4" else weights).matrix(model.head_weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d) -> logits (..., V), the softcap applied."""
        logits, cap = self.head(hidden), self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def for_writing(model: Decoder, weights: Weights | None) -> Decoder:
    """The model packed with these `weights`; none means as they are. Raises `ConfigError` where it cannot be."""
    dtype, device = model.head_weight.dtype, model.head_weight.device
    if not isinstance(model, Decoder) or weights is None and (plain() or dtype != torch.float32):
        return model
    if device.type == "cpu":
        return Writer(model if dtype == torch.float32 else copy.deepcopy(model).float(), weights or "fp32")
    if weights in ("int8", "int4"):
        raise ConfigError(f"Weights in {weights} are for the CPU, not for {device.type}", "Use weights=bf16.")
    if weights is None:
        return model
    return copy.deepcopy(model).to(torch.bfloat16 if weights == "bf16" else torch.float32)
