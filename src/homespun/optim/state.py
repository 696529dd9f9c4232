"""What the trainer needs of an optimizer beside its step: rates, clipping, and its state as tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from homespun.errors import CheckpointError

_KEYS = {"muon": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
_HINT = "It belongs to another model or optimizer: train with the settings of that run, or into another folder."


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the rate of each group to its base rate times `factor`, the schedule's value at this step."""
    for one in optimizer.param_groups:
        one["lr"] = one["base_learning_rate"] * factor


@torch.no_grad()
@torch.profiler.record_function("Optimizer.clip")
def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scales all gradients so that their global norm is at most `limit` (none: never); returns the fp32 norm before.

    A norm that is not finite leaves the gradients untouched: one NaN would otherwise spread to every weight.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms]))
    if limit is not None and limit < (length := float(norm)) < float("inf"):
        for gradient in gradients:
            gradient.mul_(limit / length)
    return norm


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
    """Replaces all state by copies of `tensors`, bit for bit.

    Raises `CheckpointError` that names what does not fit; then nothing has changed.
    """
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
        fused = bool(groups[parameter].get("fused"))  # only the fused kernel reads the count of steps on the device
        for key, tensor in state.items():
            device = tensor.device if key == "step" and not fused else parameter.device
            optimizer.state[parameter][key] = tensor.detach().to(device, copy=True)


def _check(name: str, parameter: Tensor, state: Mapping[str, Tensor], keys: set[str]) -> None:
    if set(state) != keys:
        has, wants = ", ".join(sorted(state)), ", ".join(sorted(keys))
        raise CheckpointError(f"The saved state of {name!r} has {has}, but this optimizer has {wants}", _HINT)
    for key, tensor in state.items():
        shape = torch.Size() if key == "step" else parameter.shape
        if tensor.shape != shape:
            raise CheckpointError(f"The saved {name}/{key} has shape {tuple(tensor.shape)}, not {tuple(shape)}", _HINT)
