"""The product of all kinds: what every attention, feed-forward, norm and position must hold with all others."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from homespun import config
from homespun.model.cost import cost
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import experts
from homespun.optim.groups import assign
from tests.kinds import KINDS, TOKENS, T, V, build, small


@pytest.fixture(params=KINDS, ids="-".join)
def model(request) -> Decoder:
    return build(small(*request.param))


@torch.no_grad()
def test_cached_decode_equals_full_forward_at_every_split(model):
    full = model(TOKENS)
    for split in range(1, T):
        cache = model.new_cache(3, T)
        first = model(TOKENS[:, :split], cache)
        rest = (
            [model(TOKENS[:, i : i + 1], cache) for i in range(split, T)]
            if split % 2
            else [model(TOKENS[:, split:], cache)]
        )
        torch.testing.assert_close(torch.cat([first, *rest], 1), full, atol=1e-5, rtol=1e-5)
        assert cache[0].length == T


@torch.no_grad()
def test_cache_truncates_and_reorders(model):
    cache = model.new_cache(3, T)
    model(TOKENS[:, :9], cache)
    rows = torch.tensor([2, 0, 0, 1])
    for layer in cache:
        layer.truncate(4)
        layer.reorder(rows)
    again = model(TOKENS[rows][:, 4:], cache)
    torch.testing.assert_close(again, model(TOKENS[rows])[:, 4:], atol=1e-5, rtol=1e-5)


def test_no_future_leak(model):
    """Exactly zero: the gradient of an output by a later input, and the change of it under a large change of one."""
    inputs = []
    handle = model.model.embed_tokens.register_forward_hook(lambda m, i, o: inputs.append(o.requires_grad_()) or o)
    logits = model(TOKENS)
    handle.remove()
    for t in (0, 3, T - 2):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), inputs[0], retain_graph=True)
        assert torch.equal(gradient[:, t + 1 :], torch.zeros_like(gradient[:, t + 1 :]))
        assert gradient[:, t].abs().sum() > 0
    changed = TOKENS.clone()
    changed[:, 7] = (changed[:, 7] + 1) % V
    with torch.no_grad():
        before, after = model(TOKENS)[:, :7], model(changed)[:, :7]
        if any(counts is not None for counts in model.hidden(TOKENS)[1].counts):
            torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)  # rows of a product stand in another order
        else:
            assert torch.equal(after, before)


@torch.no_grad()
def test_rows_and_padding_do_not_matter(model):
    full = model(TOKENS)
    torch.testing.assert_close(model(TOKENS[1:2]), full[1:2], atol=1e-5, rtol=1e-5)
    padding = torch.tensor([0, 3, 5])
    padded = torch.zeros_like(TOKENS)
    for row, pad in enumerate(padding.tolist()):
        padded[row, pad:] = TOKENS[row, : T - pad]
    cache = model.new_cache(3, T, padding)
    out = torch.cat([model(padded[:, :8], cache), *(model(padded[:, i : i + 1], cache) for i in range(8, T))], 1)
    for row, pad in enumerate(padding.tolist()):
        torch.testing.assert_close(out[row, pad:], full[row, : T - pad], atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient(model):
    model(TOKENS).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_costs_are_exact(model, monkeypatch):
    monkeypatch.setattr(experts, "grouped_linear", experts.looped_linear)  # torch's counter knows no grouped product
    costs = cost(model.config, length=T, causal=False)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    skipping = ("window", "query_chunk")  # torch does not count what is skipped
    if not any(getattr(model.config.attention, name, None) for name in skipping):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(TOKENS)
        assert counter.get_total_flops() == pytest.approx(costs.forward_flops * TOKENS.numel(), rel=1e-12)
    cache = model.new_cache(3, 10)
    assert sum(layer.nbytes() for layer in cache) == costs.cache_per_token * 3 * 10 + costs.cache_state * 3


def test_settings_round_trip(model):
    assert config.parse(ModelConfig, config.read_yaml(config.to_yaml(model.config))) == model.config


def test_a_checkpoint_brings_back_every_bit(model, tmp_path):
    model.rebalance([torch.tensor([9, 1, 1, 1])] * 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        other = Decoder(model.config)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    with torch.no_grad():
        assert torch.equal(other.eval()(TOKENS), model(TOKENS))


def test_the_optimizer_knows_every_parameter_once(model):
    assert len(assign(model)) == len(list(model.parameters()))
