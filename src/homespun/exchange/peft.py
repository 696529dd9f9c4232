"""An adapter leaves as the folder that the `peft` library reads, for the base that was exported beside it.

The names are those of the modules of the class that the base leaves as. Where that class holds several of our matrices
in one, so does the adapter: their A below each other, their B in blocks of the diagonal, which is the same change.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from homespun.errors import ConfigError
from homespun.exchange.classes import layout_for
from homespun.exchange.files import new_folder, write_json
from homespun.exchange.layout import Layout
from homespun.exchange.pieces import Piece, pieces
from homespun.model.lora import LoRA
from homespun.train.checkpoint import Checkpoints
from homespun.train.disk import flush
from homespun.train.saved import Trained

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_EXPERTS = {"gate_proj", "up_proj", "down_proj"}


def export_adapter(run: Trained, out: Path) -> str:
    """Writes the adapter of a tuned run into the new folder `out`; returns the class of its base.

    Raises `ConfigError` for a run without an adapter, and where no class holds the model.
    """
    adapter = run.recipe.tuned.adapter if run.recipe.tuned is not None else None
    if adapter is None:
        raise ConfigError(f"{run.folder} has no adapter", "Tune a run with --lora RANK, or export it with --to hf.")
    layout = layout_for(run.recipe.model)
    settings = layout.write(run.recipe.model)
    checkpoints = Checkpoints(run.folder / "checkpoints")
    files, _ = checkpoints.read(checkpoints.find(str(run.step), lambda note: None), only=("adapter",))
    parts = pieces(run.recipe.model, layout.rules(run.recipe.model, settings))
    found = {name: each for piece in parts for name, each in _factors(piece, files["adapter"]).items()}
    _refuse_experts(layout, found)
    tensors = {}
    for name, factors in found.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = factors.a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = factors.b.contiguous()
    with new_folder(out) as folder:
        write_json(folder / SETTINGS, _settings(adapter, found))
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(folder / SETTINGS, folder / WEIGHTS)  # safetensors gives its files to the owner alone
        flush(folder / WEIGHTS)
    return layout.architecture


def _refuse_experts(layout: Layout, found: Iterable[str]) -> None:
    """In classes that may hold experts, peft takes these names for theirs, wherever they stand."""
    names = sorted({name.rpartition(".")[2] for name in found} & _EXPERTS)
    if names and "experts" in layout.kinds["feed_forward"]:
        raise ConfigError(
            f"peft takes {', '.join(names)} of a {layout.architecture} for experts, so this adapter cannot leave alone",
            "Tune with --targets of the attention only, or export the whole model with --to hf.",
        )


@dataclass(frozen=True)
class _Factors:
    """Of one module there: A (r, d), B (n, r), and whether it keeps its inputs as rows."""

    a: Tensor
    b: Tensor
    turned: bool


def _factors(piece: Piece, tensors: Mapping[str, Tensor]) -> dict[str, _Factors]:
    """The adapter of the module on disk that holds these tensors of ours, by its name; nothing if it has none."""
    modules = [name.removesuffix(".weight") for name in piece.ours]
    adapted = [name for name in modules if f"{name}.lora_A" in tensors]
    if not adapted:
        return {}
    if adapted != modules:
        raise ConfigError(
            f"{' and '.join(adapted)} alone cannot leave as a part of {piece.theirs[0]}",
            f"Tune with all of these: {', '.join(name.rpartition('.')[2] for name in modules)}.",
        )
    assert len(piece.theirs) == 1, "a linear layer is one tensor on disk"
    a = torch.cat([tensors[f"{name}.lora_A"] for name in modules])
    blocks = torch.block_diag(*(tensors[f"{name}.lora_B"] for name in modules))  # (n of all, r of all)
    b = piece.out(blocks.split([len(tensors[f"{name}.lora_B"]) for name in modules]))[0]
    turned = b.shape == (len(a), len(blocks)) and len(a) != len(blocks)
    return {piece.theirs[0].removesuffix(".weight"): _Factors(a, b.mT if turned else b, turned)}


def _settings(adapter: LoRA, found: Mapping[str, _Factors]) -> dict[str, Any]:
    """adapter_config.json. The rank is larger where several modules of ours are in one."""
    others = {name: len(each.a) for name, each in found.items() if len(each.a) != adapter.rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.scale * adapter.rank,
        "rank_pattern": _escaped(others),
        "alpha_pattern": _escaped({name: adapter.scale * rank for name, rank in others.items()}),
        "target_modules": sorted(found),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(each.turned for each in found.values()),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _escaped(values: Mapping[str, float]) -> dict[str, float]:
    """The keys as the regular expressions that peft takes them for."""
    return {name.replace(".", r"\."): value for name, value in values.items()}
