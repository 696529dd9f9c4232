"""Initial weights, as one table: the end of a parameter's name says how it starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from homespun.model.decoder import Decoder

OUTPUTS = ("o_proj.weight", "down_proj.weight", "down_proj")
"""Matrices that write into the residual stream."""


@torch.no_grad()
def initialize(model: Decoder) -> None:
    """Fills every parameter in place, also one that came from the meta device through `to_empty`.

    | parameter                        | `gpt2`                        | `zero`  |
    |----------------------------------|-------------------------------|---------|
    | embeddings, head, other matrices | N(0, s)                       | N(0, s) |
    | outputs of each half block       | N(0, s / sqrt(2 * layers))    | 0       |
    | norm weights / biases            | 1 / 0                         | 1 / 0   |
    | the balancing bias of a router   | 0                             | 0       |
    | the embedding head               | N(0, 1 / sqrt(width))         | as left |
    | its vectors of words             | N(0, 1)                       | N(0, 1) |
    | its scores                       | 0                             | 0       |

    s = 0.02 up to width 2500, 1 / sqrt(width) beyond (GPT-2; the zero outputs are modded-nanoGPT's).
    """
    std = min(0.02, model.config.width**-0.5)
    output = {"gpt2": std / math.sqrt(2 * model.config.layers), "zero": 0.0}[model.config.initialize]
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()
    for name, parameter in model.named_parameters():
        if name.endswith((".bias", "embedding_head.score", "embedding_head.word_score")):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        elif name == "embedding_head.weight":  # vectors are normed: smaller weights would only learn faster
            _normal(parameter, model.config.width**-0.5)
        elif name == "embedding_head.words":
            _normal(parameter, 1.0)
        elif name.endswith(OUTPUTS):
            _normal(parameter, output)
        else:
            _normal(parameter, std)


def _normal(parameter: torch.Tensor, std: float) -> None:
    if std:
        nn.init.normal_(parameter, 0.0, std)
    else:
        parameter.zero_()
