"""After QK-Clip no head's scores exceed the limit, and heads below it keep every bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homespun.config import override
from homespun.errors import ConfigError
from homespun.model.attention.core import largest_scores, visible
from homespun.model.decoder import Decoder
from homespun.optim import AdamW, Muon, clip_attention
from homespun.train.recipe import Recipe
from tests.kinds import TOKENS, build, small
from tests.optim.models import weights

CLIPPED = ["mha", "mqa-bias", "window", "window-chunks", "mla", "mla-q"]


def alone(scores: Tensor) -> Tensor:
    """One process."""
    return scores


def measured(model: Decoder) -> Tensor:
    """The largest score of each head, (layers, H)."""
    return torch.stack([scores for _, scores in model.largest_scores(TOKENS)])


@pytest.fixture(params=CLIPPED)
def model(request: pytest.FixtureRequest) -> Decoder:
    positions = "yarn" if request.param == "mla-q" else "rotary"
    return build(small(request.param, "swiglu", "rms", positions), scale=40.0)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (9, 9), (3, 9)])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("together", [1, 100, 2**24])
def test_largest_scores_are_those_of_the_whole_table(
    queries: int, keys: int, window: int | None, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homespun.model.attention.core._SCORES", together)
    q, k = torch.randn(2, 6, queries, 8), torch.randn(2, 3, keys, 8)
    scores = q @ k.repeat_interleave(2, 1).mT * 0.3
    seen = visible(queries, keys, window, None, q.device)
    expected = scores.masked_fill(~seen, -torch.inf).amax((0, 2, 3))
    torch.testing.assert_close(largest_scores(q, k, window, 0.3), expected)


@torch.no_grad()
def test_the_measured_scores_are_those_that_attention_uses(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, scale: float | None, **more: object) -> Tensor:
        found.append((q @ k.repeat_interleave(q.size(1) // k.size(1), 1).mT * (scale or q.size(-1) ** -0.5)).amax())
        return kernel(q, k, v, attn_mask=attn_mask, scale=scale, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    tokens = TOKENS[:, :1]  # of one token every score is seen
    model(tokens)
    used = torch.stack(found)
    torch.testing.assert_close(torch.stack([scores.max() for _, scores in model.largest_scores(tokens)]), used)


def test_after_a_clip_no_head_exceeds_the_limit(model: Decoder) -> None:
    """Exactly the limit where it was exceeded, in every layer, though clipping one changes the input of the next."""
    limit = float(measured(model)[0].median())
    first = measured(model)[0]
    assert clip_attention(model, TOKENS, limit, alone) >= first.max()
    after = measured(model)
    assert after.max() <= limit * (1 + 1e-5)
    torch.testing.assert_close(after[0][first > limit], torch.full_like(after[0][first > limit], limit))
    assert torch.equal(after[0][first <= limit], first[first <= limit])


def test_heads_below_the_limit_keep_every_bit(model: Decoder) -> None:
    before, scores = weights(model), measured(model)
    top = scores[0].sort().values
    limit = float(top[-2:].mean())  # only one head of the first layer is above
    clip_attention(model, TOKENS, limit, alone)
    layer, head = "model.layers.0.", int(scores[0].argmax())
    for name, after in weights(model).items():
        changed = after != before[name]
        queries = name.endswith(("q_proj.weight", "q_proj.bias", "q_b_proj.weight"))
        if name.startswith(layer) and (queries or name.endswith("kv_b_proj.weight")):
            assert changed.unflatten(0, (4, -1)).flatten(1).any(1).tolist() == [i == head for i in range(4)], name
        elif name.startswith(layer):
            assert not changed.any(), name


def test_a_limit_that_nothing_reaches_only_measures(model: Decoder) -> None:
    before = weights(model)
    assert clip_attention(model, TOKENS, 1e9, alone) == measured(model).max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_scores_that_are_not_finite_change_nothing(model: Decoder) -> None:
    before = weights(model)
    clip_attention(model, TOKENS, 1.0, lambda scores: torch.full_like(scores, torch.inf))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_the_clip_holds_for_the_weights_that_autocast_has_cast(model: Decoder) -> None:
    limit = float(measured(model)[0].median())
    with torch.autocast("cpu", torch.bfloat16):
        clip_attention(model, TOKENS, limit, alone)
        assert measured(model).max() <= limit * 1.05


@pytest.mark.parametrize("optimizer", [AdamW(qk_clip=100.0), Muon(qk_clip=100.0)])
@pytest.mark.parametrize(("attention", "problem"), [("gqa", "qk_norm"), ("latent", "model.attention.kind = latent")])
def test_attention_that_cannot_be_clipped_is_refused(attention: str, problem: str, optimizer: AdamW | Muon) -> None:
    model = small(attention, "swiglu", "rms", "rotary")
    with pytest.raises(ConfigError, match=problem):
        override(Recipe(model=model), [f"optimizer.kind={optimizer.kind}", "optimizer.qk_clip=100"])
    Recipe(model=model, optimizer=optimizer.model_copy(update={"qk_clip": None}))
