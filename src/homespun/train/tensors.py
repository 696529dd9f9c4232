"""Small files of tensors, beside the checkpoints: whole or not there, read without trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from homespun.errors import CheckpointError
from homespun.train.disk import replace


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Writes tensors with what is to be known about them. Raises `CheckpointError` where that cannot be."""
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        replace(path, save(whole, {"format": "pt", **facts}))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}", "Name a file in a folder.") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_tensors` wrote. Raises `CheckpointError` for what is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "Name a file that `save` wrote.") from None
