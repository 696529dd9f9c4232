"""What an optimizer knows is saved and restored to the last bit; rates and clipping do what they say."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from homespun.errors import CheckpointError
from homespun.optim import (
    AdamW,
    Muon,
    clip_gradients,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from tests.optim.models import DENSE, EXPERTS, Named, gradients, weights

BOTH = pytest.mark.parametrize("config", [AdamW(), Muon()], ids=["adamw", "muon"])


def train(model: Named, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        gradients(model, step)
        set_learning_rate(optimizer, 1 / (1 + step))
        optimizer.step()


@BOTH
def test_a_resumed_run_ends_with_the_same_bits(config: AdamW | Muon, tmp_path: Path) -> None:
    whole = Named(DENSE | EXPERTS)
    start = weights(whole)
    optimizer = config.build(whole)
    train(whole, optimizer, range(8))

    first = Named(DENSE | EXPERTS)
    first.load_state_dict(start)
    halfway = config.build(first)
    train(first, halfway, range(4))
    save_file(optimizer_tensors(halfway, first), tmp_path / "optimizer.safetensors")

    second = Named(DENSE | EXPERTS)
    second.load_state_dict(weights(first))
    resumed = config.build(second)
    load_optimizer_tensors(resumed, second, load_file(tmp_path / "optimizer.safetensors"))
    train(second, resumed, range(4, 8))

    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(second)[name]), name
    ours, theirs = optimizer_tensors(resumed, second), optimizer_tensors(optimizer, whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@BOTH
def test_every_parameter_s_state_has_a_flat_name(config: AdamW | Muon) -> None:
    model = Named(DENSE)
    optimizer = config.build(model)
    assert optimizer_tensors(optimizer, model) == {}
    train(model, optimizer, range(3))
    tensors = optimizer_tensors(optimizer, model)
    assert {name.rpartition("/")[0] for name in tensors} == {name for name, _ in model.named_parameters()}
    step = tensors["model.norm.weight/step"]
    assert step.shape == () and step.dtype == torch.float32 and step == 3
    assert ("model.layers.0.mlp.up_proj.weight/momentum_buffer" in tensors) == (config.kind == "muon")


def test_what_is_loaded_is_a_copy() -> None:
    model = Named(DENSE)
    optimizer = Muon().build(model)
    train(model, optimizer, range(1))
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    load_optimizer_tensors(optimizer, model, saved)
    train(model, optimizer, range(1, 3))
    assert all(torch.equal(saved[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.update({"model.gone.weight/exp_avg": torch.zeros(2)}), "model.gone.weight/exp_avg"),
        (lambda t: t.update({"strange": torch.zeros(2)}), "strange"),
        (lambda t: t.pop("model.norm.weight/exp_avg_sq"), "model.norm.weight"),
        (lambda t: t.update({"model.norm.weight/exp_avg": torch.zeros(9)}), r"exp_avg has shape \(9,\)"),
        (lambda t: t.update({"model.norm.weight/step": torch.zeros(1)}), r"weight/step has shape \(1,\)"),
    ],
)  # fmt: skip
def test_state_that_does_not_fit_is_named_and_changes_nothing(change, said: str) -> None:  # type: ignore[no-untyped-def]
    model = Named(DENSE)
    optimizer = Muon().build(model)
    train(model, optimizer, range(2))
    before = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    wrong = dict(before)
    change(wrong)
    with pytest.raises(CheckpointError, match=said):
        load_optimizer_tensors(optimizer, model, wrong)
    after = optimizer_tensors(optimizer, model)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_the_state_of_another_kind_of_optimizer_is_refused() -> None:
    model = Named(DENSE)
    adam = AdamW().build(model)
    train(model, adam, range(1))
    with pytest.raises(CheckpointError, match="momentum_buffer"):
        load_optimizer_tensors(Muon().build(model), model, optimizer_tensors(adam, model))


def test_torch_s_own_state_dict_keeps_working() -> None:
    model, other = Named(DENSE), Named(DENSE)
    other.load_state_dict(weights(model))
    one = Muon().build(model)
    train(model, one, range(2))
    other.load_state_dict(weights(model))
    two = Muon().build(other)
    two.load_state_dict(copy.deepcopy(one.state_dict()))  # torch would share its tensors
    train(model, one, range(2, 4))
    train(other, two, range(2, 4))
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(model).items())


def test_the_factor_multiplies_the_base_rates() -> None:
    optimizer = Muon(learning_rate=0.5, adam_learning_rate=0.25).build(Named(DENSE))
    for factor in (0.5, 0.0, 1.0):  # never multiplied twice
        set_learning_rate(optimizer, factor)
        assert {group["lr"] for group in optimizer.param_groups} == {0.5 * factor, 0.25 * factor}


def test_gradients_are_clipped_to_the_limit_together() -> None:
    model = Named(DENSE)
    gradients(model, 0)
    before = [p.grad.clone() for p in model.parameters()]
    norm = torch.cat([g.flatten() for g in before]).norm()
    assert clip_gradients(model.parameters(), 1.0).item() == pytest.approx(norm.item(), rel=1e-6)
    assert clip_gradients(model.parameters(), None).item() == pytest.approx(1.0, rel=1e-5)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient / norm)


def test_gradients_within_the_limit_keep_their_bits() -> None:
    model = Named(DENSE)
    gradients(model, 0)
    before = [p.grad.clone() for p in model.parameters()]
    clip_gradients(model.parameters(), 1e6)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_leaves_the_gradients_alone(bad: float) -> None:
    model = Named(DENSE)
    gradients(model, 0)
    model.get_parameter("model.norm.weight").grad[3] = bad
    before = [p.grad.clone() for p in model.parameters()]
    assert not torch.isfinite(clip_gradients(model.parameters(), 1.0))
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0, equal_nan=True)


def test_the_norm_of_bf16_gradients_is_summed_in_fp32() -> None:
    weight = torch.nn.Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    weight.grad = torch.full_like(weight, 0.1)
    norm = clip_gradients([weight], None)
    assert norm.dtype == torch.float32 and norm.item() == pytest.approx(weight.grad.double().norm().item(), rel=1e-5)
    assert clip_gradients([torch.nn.Parameter(torch.zeros(3))], 1.0) == 0
