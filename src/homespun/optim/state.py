"""The state of an optimizer as tensors with flat names, for checkpoints: `parameter/key`, exact both ways."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from homespun.errors import CheckpointError

_KEYS = {"muon": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
_HINT = "It belongs to another model or optimizer: train with the settings of that run, or into another folder."


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """All state, by names like `model.norm.weight/exp_avg`. The tensors are the optimizer's own, not copies.

    A parameter that has not been updated yet has none.
    """
    return {
        f"{name}/{key}": value.contiguous()  # which keeps 0-d tensors 0-d
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replaces all state by copies of `tensors`, bit for bit. `CheckpointError` names what does not fit; then nothing changed."""
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter in groups}
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"The saved optimizer state has {full!r}, which this model does not train", _HINT)
        found[name][key] = tensor
    for name, state in found.items():
        _check(name, parameters[name], state, _KEYS[groups[parameters[name]]["method"]])
    optimizer.state.clear()
    for name, state in found.items():
        parameter = parameters[name]
        on_device = bool(groups[parameter].get("fused"))
        optimizer.state[parameter] = {
            # the count of steps lives on the CPU unless the fused kernel reads it
            key: tensor.detach().clone() if key == "step" and not on_device else _copy(tensor, parameter)
            for key, tensor in state.items()
        }


def _check(name: str, parameter: Tensor, state: Mapping[str, Tensor], keys: set[str]) -> None:
    if set(state) != keys:
        has, wants = ", ".join(sorted(state)), ", ".join(sorted(keys))
        raise CheckpointError(f"The saved optimizer state of {name!r} has {has}, where this optimizer has {wants}", _HINT)
    for key, tensor in state.items():
        shape = torch.Size() if key == "step" else parameter.shape
        if tensor.shape != shape:
            raise CheckpointError(f"The saved {name}/{key} has shape {tuple(tensor.shape)}, not {tuple(shape)}", _HINT)


def _copy(tensor: Tensor, parameter: Tensor) -> Tensor:
    return tensor.detach().to(parameter.device, copy=True)
