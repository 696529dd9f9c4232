"""Mixtures and latents compiled: the same figures as eager, in one graph."""

import pytest
import torch

from homespun.model.attention import CausalLatentAttention, GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import Experts, SigmoidRouter, SoftmaxRouter, SwiGLU
from homespun.model.feedforward.experts import grouped_linear, grouped_outer, looped_linear
from homespun.model.plain import SWITCH

EXPERTS = {"experts": 4, "hidden": 32}
KINDS = {
    "softmax": {"feed_forward": Experts(**EXPERTS, router=SoftmaxRouter(top_k=2))},
    "sigmoid": {"feed_forward": Experts(**EXPERTS, shared=1, router=SigmoidRouter(groups=2))},
    "latent": {
        "attention": CausalLatentAttention(heads=4, kv_heads=2, block=8, latents=3, memory=2),
        "feed_forward": SwiGLU(hidden=48),
    },
}
TOKENS = torch.randint(64, (2, 29), generator=torch.Generator().manual_seed(3))


def build(**parts) -> Decoder:
    torch.manual_seed(0)
    settings = {"vocab": 64, "width": 32, "layers": 2, "context": 64, "attention": GroupedAttention(heads=4)}
    model = Decoder(ModelConfig(**settings | parts))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    return model


def step(model: Decoder, hidden, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What a training step gives: hidden states, penalty and all gradients; and the tokens of each expert."""
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y, report = hidden(TOKENS)
    penalty = y.new_zeros(()) if report.penalty is None else report.penalty
    ((y.float() * torch.linspace(-1, 1, y.size(-1))).sum() + penalty).backward()
    counts = [each for each in report.counts if each is not None]
    return [y.detach(), penalty.detach(), *(p.grad for p in model.parameters())], counts


def distance(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    flat, goal = (torch.cat([each.flatten().double() for each in part]) for part in (ours, expected))
    return float((flat - goal).norm() / goal.norm())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_step_is_the_eager_one_in_one_graph(kind):
    model = build(**KINDS[kind])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model.hidden, dynamic=False, fullgraph=True)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        for _ in range(3):
            ours, counts = step(model, compiled, dtype)
        expected, eager_counts = step(model, model.hidden, dtype)
        assert distance(ours, expected) < tolerance
        if dtype == torch.float32:  # in bf16 a token may go elsewhere
            assert all(torch.equal(a, b) for a, b in zip(counts, eager_counts, strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3  # tables of positions are made once


@pytest.mark.parametrize("kind", KINDS)
def test_the_compiler_sees_one_graph(kind):
    """Traced, and run operation by operation: quick, and the bits of eager. The slow test generates code."""
    model = build(**KINDS[kind])
    expected, _ = step(model, model.hidden, torch.float32)
    torch._dynamo.reset()
    traced = torch.compile(model.hidden, dynamic=False, fullgraph=True, backend="aot_eager")
    assert distance(step(model, traced, torch.float32)[0], expected) < 1e-5


@pytest.mark.slow
def test_capacity_survives_compiling():
    model = build(feed_forward=Experts(**EXPERTS, capacity=0.7))
    torch._dynamo.reset()
    ours, _ = step(model, torch.compile(model.hidden, dynamic=False), torch.float32)
    assert distance(ours, step(model, model.hidden, torch.float32)[0]) < 1e-5


def test_the_plain_path_is_the_loop(monkeypatch):
    def refused(*args, **more):
        raise AssertionError("the grouped product was taken")

    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", refused)
    rows, weights, counts = torch.randn(13, 16), torch.randn(4, 8, 16), torch.tensor([5, 0, 7, 1])
    assert torch.equal(grouped_linear(rows, weights, counts), looped_linear(rows, weights, counts))
    assert grouped_outer(rows, rows, counts).shape == (4, 16, 16)


def test_training_without_the_fast_paths_gives_the_same(monkeypatch):
    model = build(**KINDS["sigmoid"])
    expected, _ = step(model, model.hidden, torch.float32)
    monkeypatch.setenv(SWITCH, "1")
    assert distance(step(model, model.hidden, torch.float32)[0], expected) < 1e-5
