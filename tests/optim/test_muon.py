"""Muon is torch's Muon, bit for bit, and goes further: stacks of matrices, tiny gradients, one optimizer for all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from homespun.model.matrices import Rows
from homespun.optim import Muon, set_learning_rate
from homespun.optim.muon import Adjust, newton_schulz_dtype, orthogonalize
from tests.optim.models import DENSE, EXPERTS, Named, gradients, weights

SHAPES = [(64, 64), (128, 64), (48, 96), (1, 8), (40, 17), (384, 96)]
ATTENTION = "model.layers.{}.self_attn.q_proj.weight"
GATE_UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"


def oracle(parameters: list[nn.Parameter], adjust: Adjust, **settings: object) -> torch.optim.Optimizer:
    return torch.optim.Muon(parameters, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=adjust, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_matrices_take_the_same_bits_as_torch_s_muon(adjust: Adjust, copies: int, scale: float) -> None:
    shapes = [shape for shape in SHAPES for _ in range(copies)]
    model = Named({ATTENTION.format(i): shape for i, shape in enumerate(shapes)})
    twins = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    mine, exact = Muon(adjust=adjust, newton_schulz_dtype="bf16").build(model), oracle(twins, adjust)
    for _ in range(6):
        for ours, theirs in zip(model.parameters(), twins, strict=True):
            ours.grad = torch.randn_like(ours) * scale
            theirs.grad = ours.grad.clone()
        mine.step()
        exact.step()
        for ours, theirs in zip(model.parameters(), twins, strict=True):
            assert torch.equal(ours, theirs), tuple(ours.shape)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_stacked_experts_take_the_same_bits_slice_by_slice(adjust: Adjust) -> None:
    model = Named({GATE_UP: (4, 96, 32), DOWN: (4, 32, 48)}, fused={GATE_UP: Rows((48, 48))})
    gate_up, down = model.get_parameter(GATE_UP), model.get_parameter(DOWN)

    def slices(gate_up: Tensor, down: Tensor) -> list[Tensor]:
        return [part.clone() for part in [*gate_up.reshape(8, 48, 32), *down]]  # gate and up apart

    twins = [nn.Parameter(part) for part in slices(gate_up.detach(), down.detach())]
    mine, exact = Muon(adjust=adjust, newton_schulz_dtype="bf16").build(model), oracle(twins, adjust)
    for _ in range(5):
        gate_up.grad, down.grad = torch.randn_like(gate_up), torch.randn_like(down)
        for theirs, gradient in zip(twins, slices(gate_up.grad, down.grad), strict=True):
            theirs.grad = gradient
        mine.step()
        exact.step()
    for ours, theirs in zip(slices(gate_up.detach(), down.detach()), twins, strict=True):
        assert torch.equal(ours, theirs)


KV_A, KV_B = (f"model.layers.0.self_attn.{name}.weight" for name in ("kv_a_proj_with_mqa", "kv_b_proj"))


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_parts_of_unequal_height_take_the_same_bits_part_by_part(adjust: Adjust) -> None:
    """Latent and rotary key of MLA; keys and values that alternate head by head, of which each is one matrix."""
    model = Named({KV_A: (40, 16), KV_B: (3 * (8 + 12), 32)}, fused={KV_A: Rows((32, 8)), KV_B: Rows((8, 12), times=3)})
    kv_a, kv_b = model.get_parameter(KV_A), model.get_parameter(KV_B)

    def parts(kv_a: Tensor, kv_b: Tensor) -> list[Tensor]:
        heads = kv_b.view(3, 20, 32)
        return [each.clone() for each in (kv_a[:32], kv_a[32:], heads[:, :8].flatten(0, 1), heads[:, 8:].flatten(0, 1))]

    twins = [nn.Parameter(part) for part in parts(kv_a.detach(), kv_b.detach())]
    mine, exact = Muon(adjust=adjust, newton_schulz_dtype="bf16").build(model), oracle(twins, adjust)
    for _ in range(5):
        kv_a.grad, kv_b.grad = torch.randn_like(kv_a), torch.randn_like(kv_b)
        for theirs, gradient in zip(twins, parts(kv_a.grad, kv_b.grad), strict=True):
            theirs.grad = gradient
        mine.step()
        exact.step()
    for ours, theirs in zip(parts(kv_a.detach(), kv_b.detach()), twins, strict=True):
        assert torch.equal(ours, theirs)


def test_a_small_part_beside_a_large_one_moves_as_far() -> None:
    """Together the rotary key's rows would hardly move: the reason why parts are taken apart."""
    model = Named({KV_A: (24, 32)}, fused={KV_A: Rows((16, 8))})
    (weight,) = model.parameters()
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    weight.grad[16:] *= 1e-4
    Muon(weight_decay=0.0, newton_schulz_dtype="fp32").build(model).step()
    moved = (weight.detach() - before).square().mean(-1).sqrt()
    assert moved[16:].mean().item() == pytest.approx(moved[:16].mean().item(), rel=0.3)


def test_plain_momentum_takes_the_same_bits_too() -> None:
    model = Named({ATTENTION.format(0): (32, 16)})
    (ours,) = model.parameters()
    theirs = nn.Parameter(ours.detach().clone())
    mine = Muon(nesterov=False, newton_schulz_dtype="bf16").build(model)
    exact = oracle([theirs], "original", nesterov=False)
    for _ in range(5):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        mine.step()
        exact.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_an_expert_without_gradient_only_decays(dtype: str) -> None:
    model = Named({GATE_UP: (3, 16, 8), DOWN: (3, 8, 12)}, fused={GATE_UP: Rows((8, 8))})
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
        parameter.grad[1] = 0
    Muon(learning_rate=0.5, weight_decay=0.1, newton_schulz_dtype=dtype).build(model).step()
    for name, after in weights(model).items():
        assert torch.equal(after[1], before[name][1] * (1 - 0.5 * 0.1))
        assert not torch.equal(after[0], before[name][0] * (1 - 0.5 * 0.1))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 16, 48), (1, 48, 16)])
def test_the_size_of_a_gradient_does_not_matter(size: float, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalize((torch.randn(shape) * size).to(dtype)).float())
    assert values.max() < 1.25 and values.median() > 0.3


def test_a_parameter_without_gradient_stays() -> None:
    model = Named(DENSE)
    optimizer, before = Muon().build(model), weights(model)
    gradients(model, 0)
    still = ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
    for name in still:
        model.get_parameter(name).grad = None
    optimizer.step()
    for name, after in weights(model).items():
        assert torch.equal(after, before[name]) == (name in still), name


def test_everything_but_hidden_matrices_is_adamw_s() -> None:
    model = Named(EXPERTS)
    twins = {name: nn.Parameter(tensor) for name, tensor in weights(model).items()}
    mine = Muon(adam_learning_rate=1e-2, weight_decay=0.0).build(model)
    exact = torch.optim.AdamW(twins.values(), 1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        gradients(model, step)
        for name, parameter in model.named_parameters():
            twins[name].grad = parameter.grad.clone()
        mine.step()
        exact.step()
    for name, parameter in model.named_parameters():
        same = torch.allclose(parameter, twins[name], rtol=1e-6, atol=1e-7)
        assert same == ("experts" not in name), name


def test_small_batches_of_matrices_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    one = Named(DENSE)
    other = Named(DENSE)
    other.load_state_dict(one.state_dict())
    for model, limit in ((one, 2**25), (other, 300)):
        monkeypatch.setattr("homespun.optim.muon._TOGETHER", limit)
        gradients(model, 0)
        Muon(newton_schulz_dtype="bf16").build(model).step()
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


def test_the_type_chosen_for_a_machine_is_always_the_same() -> None:
    cpu = torch.device("cpu")
    assert newton_schulz_dtype("auto", cpu) == newton_schulz_dtype("auto", cpu)
    assert newton_schulz_dtype("auto", cpu) in (torch.bfloat16, torch.float32)
    assert newton_schulz_dtype("bf16", cpu) == torch.bfloat16 and newton_schulz_dtype("fp32", cpu) == torch.float32


def test_a_linear_map_is_learnt() -> None:
    target = torch.randn(16, 24)
    model = Named({ATTENTION.format(0): (16, 24)})
    (weight,) = model.parameters()
    optimizer = Muon(learning_rate=0.1, weight_decay=0.0).build(model)

    def distance() -> Tensor:
        return (weight - target).square().mean()

    first = distance().item()
    for step in range(200):
        set_learning_rate(optimizer, 1 - step / 200)
        optimizer.zero_grad()
        distance().backward()
        optimizer.step()
    assert distance().item() < 1e-3 * first


def test_the_step_calls_a_closure_with_gradients_enabled() -> None:
    model = Named({ATTENTION.format(0): (4, 4)})
    (weight,) = model.parameters()

    def closure() -> Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    before = weight.detach().clone()
    assert Muon().build(model).step(closure).item() == pytest.approx(before.square().sum().item())
    assert not torch.equal(weight, before)
