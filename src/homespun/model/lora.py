"""Low-rank adapters (LoRA, Hu et al., 2021): y = W x + b + scale * B A x, where only A and B are trained.

An adapter stands in the place of a linear layer and asks nothing about the part that it belongs to.

d inputs, n outputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from homespun.config import Config, Count, nearest
from homespun.errors import CheckpointError, ConfigError
from homespun.model.decoder import Decoder
from homespun.model.packed import Packing, Product


class LoRA(Config):
    """A low-rank adapter. `alpha`: the change is alpha / rank * B A; none: twice the rank. `targets`: the last names of
    the linear layers that get one, such as `q_proj`; none: all in the blocks.
    """

    kind: Literal["lora"] = "lora"
    rank: Annotated[Count, Field(le=4096)] = 8
    alpha: Annotated[float, Field(gt=0)] | None = None
    targets: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return (self.alpha or 2 * self.rank) / self.rank


class LowRank(nn.Module):
    """A linear layer, frozen, with an adapter beside it. It begins as the layer alone: B is zero."""

    def __init__(self, linear: nn.Linear, config: LoRA):
        super().__init__()
        self.linear, self.scale = linear, config.scale
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.lora_A = nn.Parameter(linear.weight.new_empty(config.rank, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        linear.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:  # (..., d) -> (..., n)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    @property
    def weight(self) -> Tensor:
        """The matrix of the layer and the adapter together, (n, d)."""
        return self.linear.weight + self.scale * (self.lora_B @ self.lora_A)

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        return self.linear.bias

    def packed(self, packing: Packing) -> Product:
        """The same for decoding, as one matrix."""
        return packing.matrix(self.weight, self.bias)


def adapt(model: Decoder, config: LoRA) -> None:
    """Freezes a model and puts adapters around its linear layers, in place.

    Raises `ConfigError` for a target that it does not have.
    """
    found = adaptable(model, config)
    model.requires_grad_(False)
    for path, module in found.items():
        parent, _, name = path.rpartition(".")
        setattr(model.model.layers.get_submodule(parent), name, LowRank(module, config))


def adaptable(model: Decoder, config: LoRA) -> dict[str, nn.Linear]:
    """The linear layers that `adapt` would change, by their paths in the blocks. Raises what it raises."""
    found = {path: module for path, module in model.model.layers.named_modules() if isinstance(module, nn.Linear)}
    names = sorted({path.rpartition(".")[2] for path in found})
    for target in config.targets:
        if target not in names:
            raise ConfigError(f"The model has no linear layer {target!r} to adapt", nearest(target, names))
    chosen = config.targets or names
    return {path: module for path, module in found.items() if path.rpartition(".")[2] in chosen}


def adapters(model: Decoder) -> Iterator[tuple[str, LowRank]]:
    """All adapters with the names of the layers in whose places they stand."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LowRank))


def adapter_tensors(model: Decoder) -> dict[str, Tensor]:
    """A and B of all adapters, by names such as `model.layers.0.self_attn.q_proj.lora_A`."""
    return {
        f"{path}.{name}": getattr(module, name).detach()
        for path, module in adapters(model)
        for name in ("lora_A", "lora_B")
    }


@torch.no_grad()
def load_adapters(model: Decoder, tensors: Mapping[str, Tensor]) -> None:
    """Fills all adapters with copies of `adapter_tensors`. Raises `CheckpointError` when they do not fit."""
    own = adapter_tensors(model)
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        raise CheckpointError("The saved adapter does not fit this model", "Choose another --out.")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def merged(model: Decoder) -> dict[str, Tensor]:
    """The state of the same model without adapters: what they do stands in its matrices."""
    state = dict(model.state_dict())
    for path, module in adapters(model):
        for part in ("linear.weight", "linear.bias", "lora_A", "lora_B"):
            state.pop(f"{path}.{part}", None)
        state[f"{path}.weight"] = module.weight.detach()
        if module.bias is not None:
            state[f"{path}.bias"] = module.bias.detach()
    return state
