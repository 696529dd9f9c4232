"""Multi-head latent attention: its two ways of computing agree, its cache is as small as promised."""

import pytest
import torch

from homespun import config
from homespun.errors import ConfigError
from homespun.model.attention import mla
from homespun.model.attention.mla import MultiHeadLatentAttention
from homespun.model.decoder import ModelConfig
from homespun.model.positions import RotaryPositions
from homespun.model.scaling import YarnScaling

R, ROPE = 20, 4


def attention(**more) -> mla.LatentKeyValueAttention:
    torch.manual_seed(0)
    settings = {"heads": 3, "kv_lora_rank": R, "qk_nope_head_dim": 6, "qk_rope_head_dim": ROPE, "v_head_dim": 8} | more
    kind = MultiHeadLatentAttention(**settings)
    part = kind.build(ModelConfig(width=24, attention=kind), 0)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return part


@pytest.mark.parametrize("more", [{}, {"q_lora_rank": 9}, {"v_head_dim": 14}, {"v_head_dim": 10}])
@pytest.mark.parametrize("new", [1, 2, mla.ABSORBED])
@torch.no_grad()
def test_absorbed_equals_expanded_at_every_length(more, new, monkeypatch):
    part, x = attention(**more), torch.randn(2, 20, 24)
    full = part(x)
    for before in range(20 - new + 1):
        parts = []
        for few in (mla.ABSORBED, 0):  # absorbed, and expanded
            monkeypatch.setattr(mla, "ABSORBED", few)
            cache = part.new_cache(2, 20)
            if before:
                part(x[:, :before], cache)
            parts.append(part(x[:, before : before + new], cache))
        torch.testing.assert_close(parts[0], parts[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(parts[0], full[:, before : before + new], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("v_size", [5, 10, 13])
def test_zeros_beside_values_change_nothing(v_size, monkeypatch):
    part, x = attention(v_head_dim=v_size), torch.randn(2, 7, 24)
    plain = part(x)
    monkeypatch.setattr(mla, "LONG", 1)
    torch.testing.assert_close(part(x), plain, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_cache_holds_one_latent_and_one_rotary_key_for_a_token():
    part, x = attention(), torch.randn(2, 9, 24)
    cache = part.new_cache(2, 16)
    part(x, cache)
    assert cache.nbytes() == 2 * 16 * (R + ROPE) * 4
    assert cache.kv.shape == (2, 1, 9, R) and cache.kr.shape == (2, 1, 9, ROPE)
    assert cache.kv.data_ptr() == cache.filled.data_ptr()  # views, not copies
    compressed = part.kv_a_proj_with_mqa(x)
    torch.testing.assert_close(cache.kv[:, 0], part.kv_a_layernorm(compressed[..., :R]))
    first = cache.kr[:, 0, 0]
    torch.testing.assert_close(first, compressed[:, 0, R:])  # at place 0 nothing turns


@torch.no_grad()
def test_only_distances_count():
    """The same tokens 57 places later say the same; what stands before them is hidden as padding is."""
    part, x = attention(), torch.randn(1, 6, 24)
    q, kv, kr = part._project(x, 0, None)
    later = part._project(x, 57, None)
    assert not torch.allclose(q, later[0]) and not torch.allclose(kr, later[2])
    first, second = (part._expanded(q, *part._expand(kv, kr), None) for q, kv, kr in ((q, kv, kr), later))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_yarn_reaches_the_softmax_scale_as_in_deepseek():
    kind = MultiHeadLatentAttention(qk_nope_head_dim=6, qk_rope_head_dim=4)
    yarn = RotaryPositions(scaling=YarnScaling(factor=40, mscale=1.0, mscale_all_dim=1.0))
    scaled = kind.build(ModelConfig(attention=kind, positions=yarn), 0)
    assert scaled.scale == pytest.approx(10**-0.5 * 1.874, rel=1e-3)
    assert yarn.scaling.table_factor() == 1.0


def test_an_odd_rotary_part_is_refused():
    with pytest.raises(ConfigError, match="turn pairs"):
        config.parse(ModelConfig, {"attention": {"kind": "mla", "qk_rope_head_dim": 5}})
