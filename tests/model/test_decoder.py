"""The decoder keeps its promises for every kind of part it can be made of."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from homespun import config
from homespun.errors import ConfigError
from homespun.model.attention import GroupedAttention
from homespun.model.cost import cost
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import GELU, ReLU2, SwiGLU
from homespun.model.norms import LayerNorm, RMSNorm
from homespun.model.positions import LearnedPositions, RotaryPositions

ATTENTIONS = {
    "mha": GroupedAttention(heads=4),
    "gqa": GroupedAttention(heads=4, kv_heads=2, qk_norm=True),
    "mqa-bias": GroupedAttention(heads=4, kv_heads=1, bias=True),
    "window": GroupedAttention(heads=4, kv_heads=2, window=5),
    "chunks": GroupedAttention(heads=4, query_chunk=3),
    "window-chunks": GroupedAttention(heads=4, window=4, query_chunk=3, head_size=6),
}
FEED_FORWARDS = {"swiglu": SwiGLU(hidden=24), "gelu": GELU(bias=True, approximate="tanh"), "relu2": ReLU2()}
NORMS = {"rms": RMSNorm(), "layer": LayerNorm()}
POSITIONS = {"rotary": RotaryPositions(), "learned": LearnedPositions()}
KINDS = list(itertools.product(ATTENTIONS, FEED_FORWARDS, NORMS, POSITIONS))
T, V = 12, 29


def small(attention: str, feed_forward: str, norm: str, positions: str, **more) -> ModelConfig:
    return ModelConfig(
        vocab=V, width=16, layers=2, context=16, attention=ATTENTIONS[attention],
        feed_forward=FEED_FORWARDS[feed_forward], norm=NORMS[norm], positions=POSITIONS[positions], **more,
    )  # fmt: skip


def build(settings: ModelConfig, scale: float = 8.0) -> Decoder:
    """A model with weights large enough for every path to matter."""
    torch.manual_seed(1)
    model = Decoder(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, 0.0, 0.02 * scale)
            else:
                parameter += torch.randn_like(parameter) * 0.1
    return model


@pytest.fixture(params=KINDS, ids="-".join)
def model(request) -> Decoder:
    return build(small(*request.param))


TOKENS = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(3))


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
        assert torch.equal(model(changed)[:, :7], model(TOKENS)[:, :7])


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


def test_costs_are_exact(model):
    costs = cost(model.config, length=T, causal=False)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    if (
        model.config.attention.window is None and model.config.attention.query_chunk is None
    ):  # torch counts no skipped work
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(TOKENS)
        assert counter.get_total_flops() == costs.forward_flops * TOKENS.numel()
    cache = model.new_cache(3, 10)
    assert sum(layer.nbytes() for layer in cache) == costs.cache_per_token * 3 * 10


def test_settings_round_trip(model):
    assert config.parse(ModelConfig, config.read_yaml(config.to_yaml(model.config))) == model.config


@pytest.mark.parametrize("tied", [True, False])
def test_loss_at_the_start_is_that_of_guessing(tied):
    settings = ModelConfig(
        vocab=500, width=128, layers=4, context=64, attention=GroupedAttention(heads=4), tie_embeddings=tied
    )
    tokens = torch.randint(500, (8, 64))
    for initialize in ("gpt2", "zero"):
        model = Decoder(settings.model_copy(update={"initialize": initialize}))
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        assert abs(loss.item() - torch.tensor(500.0).log().item()) < 0.1


def test_activation_checkpointing_changes_nothing():
    model = build(small("gqa", "swiglu", "rms", "rotary", dropout=0.2)).train()
    gradients = []
    for checkpointing in (False, True):
        model.checkpoint_activations = checkpointing
        model.zero_grad()
        torch.manual_seed(5)
        model(TOKENS).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_activation_memory_is_what_autograd_keeps():
    """The estimate stays within a third of what is really kept, and never far below it."""
    for kinds in (
        ("gqa", "swiglu", "rms", "rotary"),
        ("mha", "gelu", "layer", "learned"),
        ("gqa", "relu2", "rms", "rotary"),
    ):
        settings = small(*kinds).model_copy(update={"width": 64, "context": 64, "layers": 4})
        model, kept = Decoder(settings), {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(tensor, kept=kept, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        tokens = torch.randint(V, (2, 64))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden, _ = model.hidden(tokens)
        whole = cost(settings).activations_per_token * tokens.numel()
        assert 0.8 < whole / sum(kept.values()) < 1.4, kinds
        kept.clear()
        model.checkpoint_activations = True
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden, _ = model.hidden(tokens)
        assert (
            sum(kept.values()) < cost(settings, checkpointed=True).activations_per_token * tokens.numel() < 0.6 * whole
        )


def test_softcap_bounds_the_logits():
    model = build(small("mha", "relu2", "rms", "rotary", softcap=3.0), scale=40.0)
    plain = build(small("mha", "relu2", "rms", "rotary"), scale=40.0)
    with torch.no_grad():
        assert plain(TOKENS).abs().max() > 3.0
        torch.testing.assert_close(model(TOKENS), 3.0 * torch.tanh(plain(TOKENS) / 3.0))


def test_a_mean_over_keys_counts_what_is_seen():
    from homespun.model.cost import mean_keys

    for length, window in ((1, None), (7, None), (9, 4), (5, 20)):
        seen = [min(i + 1, window or length) for i in range(length)]
        assert mean_keys(length, window, causal=True) == pytest.approx(sum(seen) / length)
        assert mean_keys(length, window, causal=False) == length


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention": {"kind": "grouped", "heads": 5}}, "does not divide"),
        ({"attention": {"kind": "grouped", "heads": 4, "kv_heads": 3}}, "kv_heads"),
        ({"attention": {"kind": "grouped", "heads": 4, "head_size": 3}}, "turn pairs"),
        ({"layers": 10**9}, "layers"),
        ({"widht": 64}, "width"),
        ({"attention": {"kind": "grouped", "haeds": 4}}, "heads"),
        ({"norm": {"kind": "batch"}}, "rms, layer"),
        ({"dropout": 1.5}, "dropout"),
        ({"width": True}, "width"),
    ],
)
def test_impossible_settings_are_errors_that_name_the_key(settings, said):
    with pytest.raises(ConfigError, match=said):
        config.parse(ModelConfig, {"width": 64} | settings)
