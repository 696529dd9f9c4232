"""What the decoder itself promises; what it promises for every kind of part stands in `tests/test_kinds.py`."""

import pytest
import torch

from homespun import config
from homespun.errors import ConfigError
from homespun.model.attention import GroupedAttention
from homespun.model.cost import cost
from homespun.model.decoder import Decoder, ModelConfig
from tests.kinds import TOKENS, V, build, small


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
