"""Where each of our tensors stands on disk, and the way of its numbers there and back.

A rule says it for names that match a pattern; a tensor that no rule knows keeps name and form. All ways are exact: they
only move numbers. They work on tensors of the meta device, too, which tells names and shapes without any weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homespun.model.decoder import Decoder, ModelConfig

Way = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Piece:
    """Some tensors of ours (`ours`) that hold the same numbers as some on disk (`theirs`); `out` leads there."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    out: Way
    back: Way


@dataclass(frozen=True)
class Rule:
    """For one of our names that matches `pattern` as a whole: the piece it belongs to."""

    pattern: str
    piece: Callable[[re.Match[str]], Piece]


def pieces(model: ModelConfig, rules: Sequence[Rule]) -> list[Piece]:
    """All pieces of a model; each of our tensors is in exactly one."""
    found: list[Piece] = []
    covered: set[str] = set()
    for name in shapes(model):
        if name not in covered:
            piece = _piece(name, rules)
            covered |= set(piece.ours)
            found.append(piece)
    assert covered == set(shapes(model)), "a rule names a tensor that is not there"
    return found


def shapes(model: ModelConfig) -> dict[str, Tensor]:
    """Our tensors without numbers, on the meta device, by name."""
    with torch.device("meta"):
        return Decoder(model).state_dict()


def to_disk(state: Mapping[str, Tensor], parts: Iterable[Piece]) -> dict[str, Tensor]:
    """The tensors as they stand on disk, by name."""
    return {
        name: tensor
        for piece in parts
        for name, tensor in zip(piece.theirs, piece.out([state[name] for name in piece.ours]), strict=True)
    }


def renamed(pattern: str, name: str) -> Rule:
    """Another name for the same tensor; `name` may refer to groups of the pattern."""
    return Rule(pattern, lambda match: Piece((match[0],), (match.expand(name),), _same, _same))


def transposed(pattern: str, name: str) -> Rule:
    """Another name, and rows for columns."""
    return Rule(pattern, lambda match: Piece((match[0],), (match.expand(name),), _turned, _turned))


def permuted(pattern: str, out: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Rule:
    """The same name, but rows in another order."""
    return Rule(pattern, lambda match: Piece((match[0],), (match[0],), lambda t: [out(t[0])], lambda t: [back(t[0])]))


def expert_rules(
    experts: int, names: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> list[Rule]:
    """Our stacked experts, which stand on disk one by one under `names`, where `{}` is the expert's number."""
    base = r"(model\.layers\.\d+\.)mlp\.experts\."

    def on_disk(match: re.Match[str], *parts: str) -> tuple[str, ...]:
        return tuple(f"{match[1]}{names.format(expert)}.{part}.weight" for part in parts for expert in range(experts))

    def halves(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [each for half in tensors[0].chunk(2, dim=1) for each in half.unbind(0)]

    def whole(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat((torch.stack(list(tensors[:experts])), torch.stack(list(tensors[experts:]))), dim=1)]

    return [
        Rule(base + "gate_up_proj", lambda match: Piece((match[0],), on_disk(match, gate, up), halves, whole)),
        Rule(
            base + "down_proj",
            lambda match: Piece(
                (match[0],), on_disk(match, down), lambda t: list(t[0].unbind(0)), lambda t: [torch.stack(list(t))]
            ),
        ),
    ]


def _piece(name: str, rules: Sequence[Rule]) -> Piece:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, name):
            return rule.piece(match)
    return Piece((name,), (name,), _same, _same)


def _same(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors


def _turned(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensors[0].mT]
