"""Which parameter is trained how: one table, in which every parameter of a model is found exactly once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from homespun.errors import ConfigError

Role = Literal["embedding", "head", "matrix", "router", "norm", "bias"]
Method = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Rule:
    """Parameters whose whole name matches `pattern` play `role`.

    `stacked`: how many matrices of equal height lie above each other in the rows; Muon must not mix them.
    """

    pattern: str
    role: Role
    stacked: int = 1


_LAYER = r"model\.layers\.\d+\."

RULES: tuple[Rule, ...] = (
    Rule(r"model\.embed_(tokens|positions)\.weight", "embedding"),
    Rule(r"lm_head\.weight", "head"),
    Rule(_LAYER + r"self_attn\.[qkvo]_proj\.weight", "matrix"),
    Rule(_LAYER + r"mlp\.(gate|up|down)_proj\.weight", "matrix"),
    Rule(_LAYER + r"mlp\.experts\.gate_up_proj", "matrix", stacked=2),  # (experts, gate and up, width)
    Rule(_LAYER + r"mlp\.experts\.down_proj", "matrix"),
    Rule(_LAYER + r"mlp\.gate\.weight", "router"),
    Rule(_LAYER + r"self_attn\.[qk]_norm\.weight", "norm"),
    Rule(_LAYER + r"(input|post_attention)_layernorm\.weight", "norm"),
    Rule(r"model\.norm\.weight", "norm"),
    Rule(r"model\..+\.bias", "bias"),
)


@dataclass(frozen=True)
class Assigned:
    """A parameter, its name and its rule."""

    name: str
    parameter: nn.Parameter
    rule: Rule


def assign(model: nn.Module, rules: Iterable[Rule] = RULES) -> list[Assigned]:
    """Every trainable parameter with its rule, tied ones once.

    Raises `ConfigError` that names a parameter which no rule or more than one rule matches.
    """
    rules, found = tuple(rules), []
    for name, parameter in model.named_parameters():  # names a shared parameter once
        matching = [rule for rule in rules if re.fullmatch(rule.pattern, name)]
        if len(matching) != 1:
            said = f"{len(matching)} rules match" if matching else "No rule matches"
            raise ConfigError(f"{said} the parameter {name!r}", "Let exactly one rule in optim/groups.py match it.")
        if parameter.requires_grad:
            found.append(Assigned(name, parameter, matching[0]))
    return found


def adam_groups(
    assigned: Iterable[Assigned], learning_rate: float, weight_decay: float, decay_embeddings: bool
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: with weight decay for matrices, head and router, without for norms and biases."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for one in assigned:
        decays = one.rule.role not in ("norm", "bias") and (decay_embeddings or one.rule.role != "embedding")
        groups[decays].append(one.parameter)
    return [
        group("adamw", parameters, learning_rate, weight_decay=weight_decay if decays else 0.0)
        for decays, parameters in groups.items()
        if parameters
    ]


def group(method: Method, parameters: list[nn.Parameter], rate: float, **settings: Any) -> dict[str, Any]:
    """A parameter group that remembers its method and the rate that the schedule's factor multiplies."""
    return {"params": parameters, "method": method, "lr": rate, "base_learning_rate": rate, **settings}


def fused(parameters: Iterable[Tensor]) -> bool:
    """Whether torch's one-pass AdamW can update these parameters."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
