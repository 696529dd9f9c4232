"""Muon (Jordan et al., 2024): orthogonalised momentum for hidden matrices, AdamW for everything else.

A matrix is (rows, columns) = (outputs, inputs); matrices of equal shape are orthogonalised together, and those that
share a parameter are taken apart before (see `model/matrices.py`). On 2-D parameters in bf16 every bit is that of
`torch.optim.Muon`, which is the oracle of the tests.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from homespun.config import Count
from homespun.model.matrices import Rows
from homespun.optim.adamw import Beta, Common, Rate
from homespun.optim.groups import adam_groups, assign, fused, muon_groups

Adjust = Literal["original", "match_rms_adamw"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: steepest at zero, not convergent to exactly 1
_TOGETHER = 2**25  # numbers that are orthogonalised in one batch; bounds the temporary memory


class Muon(Common):
    """Muon for hidden matrices at `learning_rate`; AdamW for embeddings, head, router, norms and biases at
    `adam_learning_rate`, with `betas` and `eps`.

    `adjust`: the update of a (rows, columns) matrix is scaled by sqrt(max(1, rows / columns)) (`original`) or
    0.2 * sqrt(max(rows, columns)), the size of AdamW's updates (`match_rms_adamw`: use AdamW's rates).
    `newton_schulz_dtype`: auto is bf16 where the processor multiplies in it, otherwise fp32.
    """

    kind: Literal["muon"] = "muon"
    learning_rate: Rate = 0.02
    adam_learning_rate: Rate = 3e-3
    momentum: Beta = 0.95
    nesterov: bool = True
    newton_schulz_steps: Count = 5
    newton_schulz_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    adjust: Adjust = "original"
    decay_embeddings: bool = False

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of `model`'s parameters. Raises `ConfigError` for a parameter that the rules do not know."""
        assigned = assign(model)
        hidden = [one for one in assigned if one.role in ("matrix", "expert")]
        others = [one for one in assigned if one.role not in ("matrix", "expert")]
        groups = adam_groups(others, self.adam_learning_rate, self.weight_decay, self.decay_embeddings)
        groups += muon_groups(hidden, self.learning_rate, self.weight_decay, self.expert_multiplier)
        return MuonOptimizer(groups, self)


class MuonOptimizer(torch.optim.Optimizer):
    """One optimizer over both kinds of groups; the state is `momentum_buffer` for Muon, torch's own for AdamW."""

    def __init__(self, groups: list[dict[str, Any]], config: Muon):
        super().__init__(groups, {"betas": config.betas, "eps": config.eps})
        self.config = config
        adam = [one for one in self.param_groups if one["method"] == "adamw"]
        one_pass = fused(p for one in adam for p in one["params"])
        self.adam = torch.optim.AdamW(adam, betas=config.betas, eps=config.eps, fused=one_pass) if adam else None
        self.dtype = newton_schulz_dtype(config.newton_schulz_dtype, self.param_groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.param_groups:
            if one["method"] == "muon":
                self._update(one)
        if self.adam is not None:
            self.adam.state = self.state  # one state for checkpoints, also after load_state_dict made a new one
            self.adam.param_groups = [one for one in self.param_groups if one["method"] == "adamw"]
            self.adam.step()
        return loss

    def _update(self, one: dict[str, Any]) -> None:
        by_shape: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for parameter in one["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape[-2:], parameter.dtype, parameter.device].append(parameter)
        for parameters in by_shape.values():
            for batch in _batches(parameters):
                rows = one["rows"] or Rows((batch[0].size(-2),))
                updates = [rows.split(self._momentum(parameter)) for parameter in batch]
                places = [rows.split(parameter.mul_(1 - one["lr"] * one["weight_decay"])) for parameter in batch]
                for i in range(len(rows.sizes)):
                    self._move([each[i] for each in places], [each[i] for each in updates], one["lr"])

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """What is to be orthogonalised, in the type to do that in."""
        gradient, state = cast(Tensor, parameter.grad), self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - self.config.momentum)
        return (gradient.lerp(momentum, self.config.momentum) if self.config.nesterov else momentum).to(self.dtype)

    def _move(self, places: list[Tensor], updates: list[Tensor], rate: float) -> None:
        """Moves the same part of several parameters, (..., times, size, columns), along its orthogonalised updates."""
        times, size, columns = places[0].shape[-3:]
        matrices = [update.reshape(-1, times * size, columns) for update in updates]
        directions = orthogonalize(torch.cat(matrices), self.config.newton_schulz_steps)
        alpha = -(rate * scale(self.config.adjust, times * size, columns))
        for place, direction in zip(places, directions.split([len(each) for each in matrices]), strict=True):
            place.add_(direction.reshape(place.shape), alpha=alpha)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """(n, rows, columns) -> the same shape, each matrix with its singular values brought near 1 (about 0.7 to 1.2).

    Newton-Schulz in the type of the input. A zero matrix stays exactly zero; a tiny one is treated as any other.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    # A power of two changes no bit of the result, and saves a tiny matrix from underflow in its norm.
    exponents = torch.frexp(x.abs().amax(dim=(-2, -1), keepdim=True).float()).exponent
    x = (x.float() * torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), -exponents)).to(x.dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    single = len(x) == 1  # a batch of one takes another path through the matrix library, with other roundings
    x = x.squeeze(0) if single else x
    multiply_add = torch.addmm if single else torch.baddbmm
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.unsqueeze(0) if single else x
    return x.mT if tall else x


def scale(adjust: Adjust, rows: int, columns: int) -> float:
    """What a matrix's learning rate is multiplied by."""
    if adjust == "original":
        return math.sqrt(max(1, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def newton_schulz_dtype(choice: Literal["auto", "bf16", "fp32"], device: torch.device) -> torch.dtype:
    """The type to orthogonalise in. `auto` asks what the processor has; a timing could differ at resume."""
    if choice != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[choice]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    able = device.type == "cpu" and any(getattr(torch.cpu, test, bool)() for test in tests)
    return torch.bfloat16 if able else torch.float32


def _batches(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in lists of bounded size, at least one in each."""
    batch: list[nn.Parameter] = []
    for parameter in parameters:
        if batch and (len(batch) + 1) * parameter.numel() > _TOGETHER:
            yield batch
            batch = []
        batch.append(parameter)
    if batch:
        yield batch
