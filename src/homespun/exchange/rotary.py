"""Rotary positions in both dialects of config.json: `rope_theta` with `rope_scaling`, and `rope_parameters`."""

from __future__ import annotations

from typing import Any

from homespun.errors import ConfigError
from homespun.exchange.layout import Settings
from homespun.model.decoder import ModelConfig
from homespun.model.positions import RotaryPositions

_LLAMA3 = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor",
           "original_context": "original_max_position_embeddings"}  # fmt: skip
_YARN = {"factor": "factor", "original_context": "original_max_position_embeddings", "beta_fast": "beta_fast",
         "beta_slow": "beta_slow", "truncate": "truncate", "attention_factor": "attention_factor", "mscale": "mscale",
         "mscale_all_dim": "mscale_all_dim"}  # fmt: skip
_NAMES = {"linear": {"factor": "factor"}, "llama3": _LLAMA3, "yarn": _YARN}
"""Our keys and theirs, by kind of scaling."""
_NEEDED = {"linear": ("factor",), "llama3": ("factor", "low", "high"), "yarn": ("factor",)}


def read_rotary(settings: Settings, theta: float = 10000.0, fraction: float | None = None) -> dict[str, Any]:
    """The settings of `RotaryPositions`.

    `theta`: the class's default. `fraction`: its default share of each head; none where the class turns all of it.
    """
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ConfigError(
            f"{settings.source} has rotary positions that differ from layer to layer", "Homespun has one kind for all."
        )
    turned = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor", fraction or 1.0))
    if fraction is None and turned != 1.0:
        raise ConfigError(f"{settings.source} has partial_rotary_factor = {turned}", "This class turns whole heads.")
    return {
        "kind": "rotary",
        "base": rope.get("rope_theta", settings.get("rope_theta", theta)),
        "fraction": turned,
        "scaling": _scaling(settings, rope),
    }


def write_rotary(model: ModelConfig, partial: bool = False) -> dict[str, Any]:
    """The keys of both dialects. `partial`: the class may turn a part of each head."""
    positions = model.positions
    assert isinstance(positions, RotaryPositions)
    rope: dict[str, Any] = {"rope_type": "default"}
    scaling = positions.scaling
    if scaling is not None:
        names = _NAMES[scaling.kind]
        values = {theirs: getattr(scaling, ours) for ours, theirs in names.items()}
        rope = {"rope_type": scaling.kind, **{key: value for key, value in values.items() if value is not None}}
    share: dict[str, Any] = {"partial_rotary_factor": positions.fraction} if partial else {}
    return {
        "rope_parameters": {"rope_theta": positions.base, **rope, **share},
        "rope_theta": positions.base,
        "rope_scaling": rope if scaling is not None else None,
        **share,
    }


def _scaling(settings: Settings, rope: dict[str, Any]) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in (None, "default"):
        return None
    if kind not in _NAMES:
        known = ", ".join(["default", *_NAMES])
        raise ConfigError(f"{settings.source} has rotary positions of the type {kind!r}", f"Known: {known}.")
    values = {ours: rope[theirs] for ours, theirs in _NAMES[kind].items() if rope.get(theirs) is not None}
    if kind in ("llama3", "yarn"):
        inferred = settings.get("original_max_position_embeddings")  # outside, it has priority, as in Phi-3
        values["original_context"] = inferred or values.get(
            "original_context", settings.need("max_position_embeddings")
        )
    if kind == "yarn" and "factor" not in values:
        values["factor"] = settings.need("max_position_embeddings") / values["original_context"]
    if absent := [_NAMES[kind][key] for key in _NEEDED[kind] if key not in values]:
        raise ConfigError(f"{settings.source} has rotary positions {kind} without {absent[0]}", "Add it.")
    return {"kind": kind, **values}
