"""The objective of language modelling, on the real decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from homespun.config import parse
from homespun.errors import ConfigError
from homespun.model.attention import GroupedAttention
from homespun.model.auxiliary import Auxiliary
from homespun.model.decoder import Decoder, ModelConfig
from homespun.objectives.next_token import IGNORED, NextToken


@dataclass(frozen=True)
class Rows:
    tokens: Tensor
    targets: Tensor


def decoder(**changes: object) -> Decoder:
    settings = {"vocab": 61, "width": 16, "layers": 2, "context": 12, "attention": GroupedAttention(heads=2)} | changes
    return Decoder(ModelConfig(**settings))


def rows(ignored: int = 5) -> Rows:
    tokens = torch.randint(61, (3, 13))
    targets = tokens[:, 1:].clone()
    targets.view(-1)[torch.randperm(36)[:ignored]] = IGNORED
    return Rows(tokens[:, :-1], targets)


def expected(model: Decoder, batch: Rows, reduction: str = "sum") -> Tensor:
    logits = model(batch.tokens).flatten(0, 1)
    return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction=reduction)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"softcap": 2.0}], ids=["tied", "untied", "softcap"]
)
def test_the_loss_is_the_sum_over_valid_targets_of_the_model_s_own_logits(changes: dict[str, object]) -> None:
    model, batch = decoder(**changes), rows()
    losses = NextToken(chunk=7).build()(model, batch)
    torch.testing.assert_close(losses.loss, expected(model, batch))
    assert losses.count == 31 and losses.extra == {}
    found = torch.autograd.grad(losses.total, list(model.parameters()))
    wanted = torch.autograd.grad(expected(model, batch), list(model.parameters()))
    for mine, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-6)


def test_the_loss_at_initialisation_is_that_of_knowing_nothing() -> None:
    losses = NextToken().build()(decoder(), rows(0))
    assert losses.loss.item() / losses.count == pytest.approx(math.log(61), abs=0.1)


def test_the_z_loss_is_reported_apart_from_the_loss() -> None:
    model, batch = decoder(), rows()
    losses = NextToken(z_loss=0.1).build()(model, batch)
    torch.testing.assert_close(losses.loss, expected(model, batch).detach())
    valid = batch.targets != IGNORED
    z = 0.1 * model(batch.tokens).logsumexp(-1).square()[valid].sum()
    torch.testing.assert_close(losses.extra["z_loss"][0], z.detach())
    assert losses.extra["z_loss"][1] == losses.count == 31
    torch.testing.assert_close(losses.total, losses.loss + losses.extra["z_loss"][0])
    with torch.no_grad():
        again = NextToken(z_loss=0.1).build()(model, batch)
    torch.testing.assert_close((again.loss, again.total), (losses.loss, losses.total.detach()))


def test_the_model_s_own_losses_are_added_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = decoder(), rows()
    hidden, own = model.hidden(batch.tokens)[0], torch.tensor(2.5, requires_grad=True)
    report = Auxiliary(own * 0.01, {"balance": own.detach()}, (torch.tensor([3, 1]), None))
    monkeypatch.setattr(model, "hidden", lambda tokens: (hidden, report))
    losses = NextToken().build()(model, batch)
    torch.testing.assert_close(losses.total, losses.loss + 0.025 * losses.count)
    torch.testing.assert_close(losses.loss, expected_from(model, hidden, batch))
    assert losses.extra["balance"] == (2.5 * losses.count, losses.count)
    assert losses.counts is report.counts
    losses.total.backward()
    torch.testing.assert_close(own.grad, torch.tensor(0.01 * losses.count))


def expected_from(model: Decoder, hidden: Tensor, batch: Rows) -> Tensor:
    logits = model.logits(hidden).flatten(0, 1).detach()
    return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")


def test_four_small_batches_give_the_gradient_of_one_large_one() -> None:
    model, batch, objective = decoder(), rows(11), NextToken().build()
    whole = torch.autograd.grad(objective(model, batch).total, list(model.parameters()))
    for i in range(3):
        objective(model, Rows(batch.tokens[i : i + 1], batch.targets[i : i + 1])).total.backward()
    for parameter, gradient in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_token_losses_name_the_loss_of_every_position() -> None:
    model, batch = decoder(softcap=3.0), rows()
    losses = NextToken(chunk=5).build().token_losses(model, batch)
    assert losses.shape == batch.targets.shape
    torch.testing.assert_close(losses.flatten(), expected(model, batch, "none").detach())


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"z_loss": -1.0}, {"chunk": 0}, {"zloss": 1.0}):
        with pytest.raises(ConfigError):
            parse(NextToken, wrong)
