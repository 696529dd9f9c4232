"""Adapters: at first the model as it was, then the same function merged or not; only they are trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from homespun.errors import CheckpointError, ConfigError
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.model.decoder import Decoder
from homespun.model.lora import LoRA, LowRank, adapt, adapter_tensors, adapters, load_adapters, merged
from homespun.optim import AdamW
from tests.kinds import ATTENTIONS, FEED_FORWARDS, TOKENS, build, small

KINDS = [*((name, "swiglu") for name in ATTENTIONS), *(("gqa", name) for name in FEED_FORWARDS)]


def filled(model: Decoder, config: LoRA) -> Decoder:
    """With adapters that change something."""
    adapt(model, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.normal_(0, 0.2)
    return model


@pytest.mark.parametrize(("attention", "feed_forward"), KINDS, ids="-".join)
def test_an_adapter_begins_as_nothing_and_merges_exactly(attention: str, feed_forward: str) -> None:
    settings = small(attention, feed_forward, "rms", "rotary")
    plain, model = build(settings), build(settings)
    adapt(model, LoRA(rank=3))
    assert torch.allclose(model(TOKENS), plain(TOKENS), atol=1e-6)
    model = filled(build(settings), LoRA(rank=3, alpha=5))
    changed = model(TOKENS)
    assert (changed - plain(TOKENS)).abs().max() > 0.01
    other = Decoder(settings).eval()
    other.load_state_dict(merged(model))
    assert torch.allclose(other(TOKENS), changed, atol=2e-4)


@pytest.mark.parametrize(("attention", "feed_forward"), KINDS, ids="-".join)
def test_only_adapters_are_trained(attention: str, feed_forward: str) -> None:
    model = filled(build(small(attention, feed_forward, "rms", "rotary")), LoRA(rank=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hidden, auxiliary = model.train().hidden(TOKENS)
    optimizer = AdamW(learning_rate=0.1).build(model)
    (model.logits(hidden).square().mean()).backward()
    optimizer.step()
    model.rebalance(auxiliary.counts)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(adapter_tensors(model))


def test_targets_are_names_of_linear_layers() -> None:
    model = build(small("gqa", "swiglu", "rms", "rotary"))
    adapt(model, LoRA(targets=("q_proj", "down_proj")))
    names = {path.rpartition(".")[2] for path, _ in adapters(model)}
    assert names == {"q_proj", "down_proj"} and len(list(adapters(model))) == 4
    with pytest.raises(ConfigError, match="'q_porj'.*Did you mean 'q_proj'"):
        adapt(build(small("gqa", "swiglu", "rms", "rotary")), LoRA(targets=("q_porj",)))


def test_all_linear_layers_of_the_blocks_get_one() -> None:
    model = build(small("mla", "experts-shared", "rms", "rotary"))
    linear = {path for path, module in model.model.layers.named_modules() if isinstance(module, nn.Linear)}
    adapt(model, LoRA())
    assert {path.removeprefix("model.layers.") for path, _ in adapters(model)} == linear


def test_the_formula() -> None:
    linear = nn.Linear(5, 4)
    layer = LowRank(linear, LoRA(rank=2, alpha=6))
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 5)
    assert torch.allclose(layer(x), linear(x) + 3 * (x @ layer.lora_A.T @ layer.lora_B.T), atol=1e-6)
    assert LoRA(rank=4).scale == 2


def test_saved_adapters_come_back_and_others_are_refused() -> None:
    settings = small("gqa", "swiglu", "rms", "rotary")
    model, other = filled(build(settings), LoRA(rank=2)), build(settings)
    adapt(other, LoRA(rank=2))
    load_adapters(other, adapter_tensors(model))
    assert torch.equal(other(TOKENS), model(TOKENS))
    smaller = build(settings)
    adapt(smaller, LoRA(rank=1))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_adapters(smaller, adapter_tensors(model))


@pytest.mark.parametrize("attention", ["gqa", "mla", "latent"])
def test_a_model_with_adapters_writes_as_the_merged_one(attention: str) -> None:
    from homespun.data.vocabulary import Bytes

    settings = small(attention, "swiglu", "rms", "rotary").model_copy(update={"vocab": 260})
    model = filled(build(settings), LoRA(rank=2))
    other = Decoder(settings).eval()
    other.load_state_dict(merged(model))
    tokenizer = Bytes().build([], 0)[0]
    greedy = Sampling(max_tokens=12, temperature=0)
    assert Generator(model, tokenizer).generate("ab", greedy) == Generator(other, tokenizer).generate("ab", greedy)
