"""Small modules that carry the decoder's parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from homespun.model.matrices import Rows


class Named(nn.Module):
    """Parameters by dotted names, random values; `tied` is the head's weight as well as the embedding's. `fused`: what
    it says of parameters that hold several matrices."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], tied: bool = False, fused: dict[str, Rows] | None = None):
        super().__init__()
        self.fused = fused or {}
        for name, shape in shapes.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.register_parameter(last, nn.Parameter(torch.randn(shape) * 0.1))
        if tied:
            self.lm_head = nn.Module()
            self.lm_head.weight = self.get_parameter("model.embed_tokens.weight")

    def fused_rows(self) -> dict[str, Rows]:
        return self.fused


LAYER = "model.layers.{}."
DENSE: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (20, 8),
    "model.embed_positions.weight": (6, 8),
    **{LAYER.format(i) + f"self_attn.{part}_proj.weight": (8, 8) for i in range(2) for part in "qo"},
    **{LAYER.format(i) + f"self_attn.{part}_proj.weight": (4, 8) for i in range(2) for part in "kv"},
    **{LAYER.format(i) + "self_attn.q_proj.bias": (8,) for i in range(2)},
    **{LAYER.format(i) + f"self_attn.{part}_norm.weight": (4,) for i in range(2) for part in "qk"},
    **{LAYER.format(i) + f"mlp.{part}_proj.weight": (24, 8) for i in range(2) for part in ("gate", "up")},
    **{LAYER.format(i) + "mlp.down_proj.weight": (8, 24) for i in range(2)},
    **{LAYER.format(i) + f"{part}_layernorm.weight": (8,) for i in range(2) for part in ("input", "post_attention")},
    **{LAYER.format(i) + "input_layernorm.bias": (8,) for i in range(2)},
    "model.norm.weight": (8,),
}
EXPERTS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (20, 8),
    "model.layers.0.mlp.gate.weight": (4, 8),
    "model.layers.0.mlp.experts.gate_up_proj": (4, 24, 8),
    "model.layers.0.mlp.experts.down_proj": (4, 8, 12),
    "model.norm.weight": (8,),
    "lm_head.weight": (20, 8),
}


def gradients(model: nn.Module, step: int) -> None:
    """Sets gradients that depend on the step only."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
