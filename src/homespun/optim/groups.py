"""Which parameter is trained how: one table, in which every parameter of a model is found exactly once."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from homespun.errors import ConfigError
from homespun.model.matrices import Rows, fused_rows

Role = Literal["embedding", "head", "matrix", "expert", "router", "norm", "bias"]
Method = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Rule:
    """Parameters whose whole name matches `pattern` play `role`."""

    pattern: str
    role: Role


_LAYER = r"model\.layers\.\d+\."
_ATTENTION = _LAYER + r"self_attn\."

RULES: tuple[Rule, ...] = (
    Rule(r"model\.embed_(tokens|positions)\.weight", "embedding"),
    Rule(r"lm_head\.weight", "head"),
    Rule(r"embedding_head\.(weight|score)", "head"),
    Rule(r"embedding_head\.(words|word_score)", "embedding"),
    Rule(_ATTENTION + r"latents", "embedding"),
    Rule(_ATTENTION + r"[qkvo]_proj\.weight", "matrix"),
    Rule(_ATTENTION + r"(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj)\.weight", "matrix"),
    Rule(_ATTENTION + r"(read_[qo]|latent_[qkvo])_proj\.weight", "matrix"),
    Rule(_LAYER + r"mlp\.(shared_experts\.)?(gate|up|down)_proj\.weight", "matrix"),
    Rule(_LAYER + r"mlp\.experts\.(gate_up|down)_proj", "expert"),
    Rule(_LAYER + r"mlp\.gate\.weight", "router"),
    Rule(_ATTENTION + r"([qk]_norm|(q|kv)_a_layernorm|(read|latent|memory)_norm)\.weight", "norm"),
    Rule(_LAYER + r"(input|post_attention)_layernorm\.weight", "norm"),
    Rule(r"model\.norm\.weight", "norm"),
    Rule(_LAYER + r".+\.lora_[AB]", "matrix"),
    Rule(r"model\..+\.bias", "bias"),
)


@dataclass(frozen=True)
class Assigned:
    """A parameter, its name, its role, and its rows where they are several matrices."""

    name: str
    parameter: nn.Parameter
    role: Role
    rows: Rows | None


def assign(model: nn.Module, rules: Iterable[Rule] = RULES) -> list[Assigned]:
    """Every trainable parameter with its role, tied ones once.

    Raises `ConfigError` that names a parameter which no rule or more than one rule matches.
    """
    rules, found, rows = tuple(rules), [], fused_rows(model)
    for name, parameter in model.named_parameters():  # names a shared parameter once
        if not parameter.requires_grad:
            continue
        matching = [rule for rule in rules if re.fullmatch(rule.pattern, name)]
        if len(matching) != 1:
            said = f"{len(matching)} rules match" if matching else "No rule matches"
            raise ConfigError(f"{said} the parameter {name!r}", "Let exactly one rule in optim/groups.py match it.")
        found.append(Assigned(name, parameter, matching[0].role, rows.get(name)))
    return found


def adam_groups(
    assigned: Iterable[Assigned],
    learning_rate: float,
    weight_decay: float,
    decay_embeddings: bool,
    expert_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: with weight decay for matrices, head and router, without for norms and biases."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for one in assigned:
        decays = one.role not in ("norm", "bias") and (decay_embeddings or one.role != "embedding")
        rate = learning_rate * (expert_multiplier if one.role == "expert" else 1.0)
        groups[rate, weight_decay if decays else 0.0].append(one.parameter)
    return [group("adamw", parameters, rate, weight_decay=decay) for (rate, decay), parameters in groups.items()]


def muon_groups(
    assigned: Iterable[Assigned], learning_rate: float, weight_decay: float, expert_multiplier: float
) -> list[dict[str, Any]]:
    """Parameter groups for Muon, each with parameters whose `rows` are shared in the same way."""
    groups: dict[tuple[float, Rows | None], list[nn.Parameter]] = defaultdict(list)
    for one in assigned:
        rate = learning_rate * (expert_multiplier if one.role == "expert" else 1.0)
        groups[rate, one.rows].append(one.parameter)
    return [
        group("muon", parameters, rate, weight_decay=weight_decay, rows=rows)
        for (rate, rows), parameters in groups.items()
    ]


def group(method: Method, parameters: list[nn.Parameter], rate: float, **settings: Any) -> dict[str, Any]:
    """A parameter group that remembers its method and the rate that the schedule's factor multiplies."""
    return {"params": parameters, "method": method, "lr": rate, "base_learning_rate": rate, **settings}


def fused(parameters: Iterable[Tensor]) -> bool:
    """Whether torch's one-pass AdamW can update these parameters."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
