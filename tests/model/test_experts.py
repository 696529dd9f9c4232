"""Routing, balance and dispatch of a mixture of experts, against plain loops and against arithmetic."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from homespun import config
from homespun.errors import ConfigError
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import Experts, SigmoidRouter, SoftmaxRouter
from homespun.model.feedforward.experts import MixtureOfExperts, balance_loss, grouped_linear, looped_linear
from homespun.model.feedforward.routers import Routing

WIDTH, HIDDEN = 16, 24
MODEL = ModelConfig(vocab=11, width=WIDTH, layers=2, context=32, attention=GroupedAttention(heads=2))


def mixture(settings: Experts, seed: int = 0) -> MixtureOfExperts:
    torch.manual_seed(seed)
    part = settings.build(MODEL, 0)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.4)
    return part


def experts(**more) -> Experts:
    return Experts(**({"experts": 6, "hidden": HIDDEN} | more))


def by_hand(part: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """Token by token, expert by expert."""
    rows = x.flatten(0, 1)
    routing = part.gate(rows)
    out = torch.zeros_like(rows)
    for token, (chosen, weights) in enumerate(zip(routing.chosen, routing.weights, strict=True)):
        for expert, weight in zip(chosen.tolist(), weights, strict=True):
            gate, up = (part.experts.gate_up_proj[expert] @ rows[token]).chunk(2)
            out[token] += weight * (part.experts.down_proj[expert] @ (F.silu(gate) * up))
    shared = part.shared_experts(x)[0] if part.config.shared else 0
    return out.view_as(x) + shared


ROUTERS = [
    SoftmaxRouter(),
    SoftmaxRouter(top_k=3, normalize=False, scale=2.0),
    SoftmaxRouter(groups=3, top_groups=2),
    SigmoidRouter(top_k=2, groups=2, top_groups=1, scale=2.5),
    SigmoidRouter(top_k=6),
]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: f"{router.kind}-{router.top_k}-{router.groups}")
@pytest.mark.parametrize("shared", [0, 2])
def test_a_mixture_is_the_weighted_sum_of_its_experts(router, shared):
    part = mixture(experts(router=router, shared=shared))
    x = torch.randn(2, 9, WIDTH)
    torch.testing.assert_close(part(x)[0], by_hand(part, x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[5, 0, 7, 1], [0, 0, 13, 0], [4, 4, 4, 1]])
def test_the_grouped_product_is_the_loop_forward_and_backward(dtype, counts):
    torch.manual_seed(1)
    results = []
    for product in (grouped_linear, looped_linear):
        torch.manual_seed(2)
        rows = torch.randn(13, WIDTH, dtype=dtype, requires_grad=True)
        weights = torch.randn(4, 8, WIDTH, dtype=dtype, requires_grad=True)
        y = product(rows, weights, torch.tensor(counts))
        (y * torch.randn(13, 8).to(dtype)).sum().backward()
        results.append((y.detach(), rows.grad, weights.grad))
    for ours, loop in zip(*results, strict=True):
        assert torch.equal(ours, loop)
    assert not results[0][2][[i for i, n in enumerate(counts) if n == 0]].any()  # an idle expert has no gradient


def test_widths_that_the_kernel_refuses_take_the_loop():
    settings = experts(hidden=7)
    part, x = mixture(settings), torch.randn(1, 5, WIDTH)
    torch.testing.assert_close(part(x)[0], by_hand(part, x), atol=2e-5, rtol=1e-4)
    part(x)[0].sum().backward()
    double = mixture(experts()).double()
    assert torch.autograd.gradcheck(lambda x: double(x)[0], torch.randn(1, 3, WIDTH).double().requires_grad_())


def test_identical_experts_are_one_dense_part_and_all_of_them_a_dense_mixture():
    part, x = mixture(experts()), torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        for weights in part.experts.parameters():
            weights.copy_(weights[:1].expand_as(weights))
    gate, up = F.linear(x, part.experts.gate_up_proj[0]).chunk(2, -1)
    torch.testing.assert_close(part(x)[0], F.linear(F.silu(gate) * up, part.experts.down_proj[0]), atol=1e-5, rtol=1e-4)


def test_tokens_are_routed_alone_whatever_their_company_and_order():
    part, x = mixture(experts(router=SigmoidRouter())), torch.randn(3, 7, WIDTH)
    whole = part(x)[0]
    torch.testing.assert_close(part(x[1:2])[0], whole[1:2], atol=1e-6, rtol=1e-5)
    order = torch.randperm(21)
    mixed = part(x.flatten(0, 1)[order][None])[0][0]
    torch.testing.assert_close(mixed, whole.flatten(0, 1)[order], atol=1e-6, rtol=1e-5)


def test_the_router_learns_through_the_weights_and_never_through_the_choice():
    part = mixture(experts(router=SoftmaxRouter(top_k=1), balance_loss=0, z_loss=0))
    y, report = part(torch.randn(2, 5, WIDTH))
    assert report.penalty == 0
    y.sum().backward()
    assert part.gate.weight.grad.abs().max() < 1e-4  # one expert, normalised: its weight is 1 whatever the router says
    part = mixture(experts(router=SoftmaxRouter(top_k=1, normalize=False)))
    part(torch.randn(2, 5, WIDTH))[0].sum().backward()
    assert part.gate.weight.grad.abs().max() > 1e-1


def test_the_balance_loss_is_one_when_even_and_more_when_not():
    for count, top in ((8, 2), (4, 1), (6, 6)):
        even = torch.full((12, count), 1 / count)
        routing = Routing(torch.zeros(12, top), torch.ones(12, top), even.log(), even)
        assert balance_loss(routing, torch.full((count,), 3)) == pytest.approx(1.0)
        skewed = torch.eye(count)[:1].expand(12, -1)
        routing = Routing(torch.zeros(12, top), torch.ones(12, top), skewed.log(), skewed)
        counts = torch.tensor([12] + [0] * (count - 1))
        assert balance_loss(routing, counts) == pytest.approx(count)
    for seed in range(20):  # tokens where the probability is: never below 1
        share = torch.randn(5, generator=torch.Generator().manual_seed(seed)).softmax(0)
        routing = Routing(torch.zeros(1, 1), torch.ones(1, 1), share.log()[None], share[None])
        assert balance_loss(routing, share * 1000) >= 1.0 - 1e-6


def test_losses_are_means_over_tokens_and_layers():
    torch.manual_seed(0)
    settings = MODEL.model_copy(update={"feed_forward": experts(dense_layers=(1,), balance_loss=0.5, z_loss=0.25)})
    model, tokens = Decoder(settings), torch.randint(11, (2, 8))
    _, report = model.hidden(tokens)
    balance, z = report.losses["balance_loss"], report.losses["router_z_loss"]
    torch.testing.assert_close(report.penalty, 0.5 * balance + 0.25 * z)
    assert 0.9 < balance < 6 and report.counts[1] is None
    assert report.counts[0].sum() == 2 * 8 * 2  # every token, twice
    with torch.no_grad():
        _, twice = model.hidden(tokens.repeat(3, 1))
    assert twice.penalty is None  # nothing is learned, nothing is computed
    assert torch.equal(twice.counts[0], 3 * report.counts[0])


def test_balancing_by_bias_evens_out_a_skewed_router():
    torch.manual_seed(0)
    router = SigmoidRouter(bias_rate=1e-2).build(WIDTH, 16)
    torch.nn.init.normal_(router.weight, 0.0, 0.2)
    skew = torch.randn(WIDTH)  # all tokens lean to one side, and with them to the same experts

    def worst() -> float:
        chosen = router(torch.randn(2048, WIDTH) + skew).chosen
        counts = torch.bincount(chosen.flatten(), minlength=16)
        router.rebalance(counts)
        return float(counts.max() / counts.float().mean() - 1)

    first = worst()
    for _ in range(150):
        last = worst()
    assert first > 1.0 and last < 0.35
    assert abs(router.e_score_correction_bias.mean()) < 1e-6 and not router.e_score_correction_bias.requires_grad
    fixed = SigmoidRouter(bias_rate=0).build(WIDTH, 16)
    fixed.rebalance(torch.arange(16))
    assert not fixed.e_score_correction_bias.any()


def test_the_bias_chooses_and_does_not_weigh():
    router = SigmoidRouter(top_k=2, normalize=False).build(WIDTH, 6)
    torch.nn.init.normal_(router.weight)
    x = torch.randn(4, WIDTH)
    router.e_score_correction_bias[5] = 10.0
    routing = router(x)
    assert (routing.chosen == 5).any(1).all()
    torch.testing.assert_close(routing.weights, routing.logits.sigmoid().gather(1, routing.chosen))


def test_groups_limit_the_candidates_also_below_zero():
    router = SigmoidRouter(top_k=2, groups=3, top_groups=1).build(WIDTH, 6)
    torch.nn.init.normal_(router.weight)
    router.e_score_correction_bias.fill_(-5.0)  # then zero would beat every candidate
    chosen = router(torch.randn(50, WIDTH)).chosen
    assert torch.equal(chosen[:, 0] // 2, chosen[:, 1] // 2)


def test_the_bias_stays_fp32_and_exact_in_a_bf16_model():
    part = mixture(experts(router=SigmoidRouter()))
    part.gate.e_score_correction_bias.copy_(torch.tensor([0.001234, 1.0, -0.2, 0.3, 0.7, 0.1]))
    exact = part.gate.e_score_correction_bias.clone()
    part = part.to(torch.bfloat16)
    assert part.gate.weight.dtype == torch.bfloat16
    assert torch.equal(part.gate.e_score_correction_bias, exact)


def test_capacity_drops_the_last_tokens_in_training_only():
    part = mixture(experts(capacity=0.5, router=SoftmaxRouter(top_k=1)))
    x = torch.randn(1, 24, WIDTH)
    limit = round(0.5 * 24 / 6)
    chosen = part.gate(x[0]).chosen[:, 0].tolist()
    rank = [chosen[:i].count(expert) for i, expert in enumerate(chosen)]
    free, capped = part.eval()(x)[0][0], part.train()(x)[0][0]
    for token, place in enumerate(rank):
        expected = free[token] if place < limit else torch.zeros(WIDTH)
        torch.testing.assert_close(capped[token], expected, atol=1e-6, rtol=1e-5)
    assert max(rank) >= limit
    part(x)[0].sum().backward()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"experts": 6, "router": {"kind": "softmax", "groups": 4}}, "groups"),
        ({"experts": 4, "router": {"kind": "softmax", "top_k": 5}}, "top_k"),
        ({"experts": 4, "router": {"kind": "sigmoid", "groups": 2, "top_groups": 1, "top_k": 3}}, "2 experts"),
        ({"dense_layers": [7]}, "layer 7"),
        ({"router": {"kind": "hash"}}, "softmax, sigmoid"),
        ({"router": {"top_k": 2}}, "needs a kind"),
    ],
)
def test_impossible_mixtures_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        config.parse(ModelConfig, {"width": 96, "feed_forward": {"kind": "experts"} | settings})


def test_a_mixture_computes_in_bf16_under_autocast_and_stays_near():
    part, x = mixture(experts(shared=1)), torch.randn(2, 9, WIDTH)
    exact = part(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough, report = part(x)
    assert rough.dtype == torch.bfloat16 and report.penalty.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.03
    rough.float().sum().backward()
    assert part.experts.down_proj.grad.dtype == torch.float32


def test_checkpointed_activations_count_each_token_once():
    settings = MODEL.model_copy(update={"feed_forward": experts()})
    torch.manual_seed(0)
    model, tokens = Decoder(settings), torch.randint(11, (2, 8))
    gradients = []
    for model.checkpoint_activations in (False, True):
        model.zero_grad()
        hidden, report = model.hidden(tokens)
        (hidden.square().sum() + report.penalty).backward()
        assert all(counts.sum() == 2 * 8 * 2 for counts in report.counts)
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_every_router_meets_every_size():
    for router, count in itertools.product((SoftmaxRouter(), SigmoidRouter()), (2, 3, 8)):
        part = mixture(experts(experts=count, router=router))
        assert part(torch.randn(1, 1, WIDTH))[0].shape == (1, 1, WIDTH)
