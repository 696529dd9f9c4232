"""Every parameter is trained by exactly one rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from homespun.errors import ConfigError
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import GELU, ReLU2, SwiGLU
from homespun.model.matrices import Rows, fused_rows
from homespun.model.norms import LayerNorm, RMSNorm
from homespun.model.positions import LearnedPositions, RotaryPositions
from homespun.optim import AdamW, Muon, set_learning_rate
from homespun.optim.groups import RULES, Rule, assign
from tests.kinds import small
from tests.optim.models import DENSE, EXPERTS, Named


def roles(model: nn.Module) -> dict[str, str]:
    return {one.name: one.role for one in assign(model)}


@pytest.mark.parametrize("feed_forward", [SwiGLU(bias=True), GELU(bias=True), ReLU2()], ids=["swiglu", "gelu", "relu2"])
@pytest.mark.parametrize("norm", [RMSNorm(), LayerNorm(bias=True)], ids=["rms", "layer"])
@pytest.mark.parametrize("positions", [RotaryPositions(), LearnedPositions()], ids=["rotary", "learned"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_of_every_decoder_has_exactly_one_rule(feed_forward, norm, positions, tied) -> None:  # type: ignore[no-untyped-def]
    attention = GroupedAttention(heads=2, qk_norm=True, bias=True)
    model = Decoder(
        ModelConfig(vocab=16, width=8, layers=2, context=4, attention=attention, feed_forward=feed_forward, norm=norm,
                    positions=positions, tie_embeddings=tied)
    )  # fmt: skip
    found = roles(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, role in found.items():
        hidden_matrix = name.endswith("_proj.weight")
        assert (role == "matrix") == hidden_matrix, name
        assert role in ("norm", "bias") or model.get_parameter(name).dim() >= 2, name


@pytest.mark.parametrize("kind", [AdamW, Muon])
@pytest.mark.parametrize("attention", ["mla", "mla-q", "latent", "gqa"])
@pytest.mark.parametrize("feed_forward", ["experts-shared", "experts"])
def test_every_parameter_of_every_kind_is_in_one_group(attention: str, feed_forward: str, kind: type) -> None:
    model = Decoder(small(attention, feed_forward, "layer", "learned", tie_embeddings=False))
    methods = {p: group["method"] for group in kind().build(model).param_groups for p in group["params"]}
    parameters = [p for group in kind().build(model).param_groups for p in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, model.parameters()))
    for name, parameter in model.named_parameters():
        hidden = "_proj" in name and not name.endswith(".bias")
        assert methods[parameter] == ("muon" if hidden and kind is Muon else "adamw"), name


def test_the_parts_say_which_rows_are_a_matrix() -> None:
    found = fused_rows(Decoder(small("mla", "experts-shared", "rms", "rotary")))
    assert found == {
        **{f"model.layers.{i}.self_attn.kv_a_proj_with_mqa.weight": Rows((12, 4)) for i in range(2)},
        **{f"model.layers.{i}.self_attn.kv_b_proj.weight": Rows((6, 6), times=4) for i in range(2)},
        "model.layers.1.mlp.experts.gate_up_proj": Rows((8, 8)),
    }
    keys, values = Rows((1, 2), times=2).split(torch.arange(6.0)[:, None])
    assert keys.flatten().tolist() == [0, 3] and values.flatten().tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize(("kind", "rate"), [(AdamW, 3e-4), (Muon, 0.02)])
def test_routed_experts_have_a_rate_of_their_own(kind: type, rate: float) -> None:
    model = Named(DENSE | EXPERTS | {"model.layers.0.mlp.shared_experts.up_proj.weight": (24, 8)})
    optimizer = kind(learning_rate=rate, expert_multiplier=0.5).build(model)
    set_learning_rate(optimizer, 0.1)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight") or "experts" in name:
            routed = "mlp.experts" in name
            assert rates[parameter] == pytest.approx(rate * 0.1 * (0.5 if routed else 1)), name
        elif kind is AdamW:
            assert rates[parameter] == pytest.approx(rate * 0.1), name


def test_experts_go_by_their_matrices_and_the_router_apart() -> None:
    found = roles(Named(EXPERTS))
    assert found["model.layers.0.mlp.gate.weight"] == "router"
    assert found["model.layers.0.mlp.experts.gate_up_proj"] == found["model.layers.0.mlp.experts.down_proj"] == "expert"
    assert found["lm_head.weight"] == "head"


@pytest.mark.parametrize("name", ["model.layers.0.mlp.surprise.weight", "encoder.weight", "model.norm.weights"])
def test_an_unknown_parameter_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=f"No rule matches the parameter '{name}'"):
        assign(Named(DENSE | {name: (4, 4)}))


def test_a_doubly_matched_parameter_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"2 rules match the parameter 'model\.norm\.weight'"):
        assign(Named(DENSE), [*RULES, Rule(r"model\.norm\..*", "norm")])


@pytest.mark.parametrize("config", [AdamW(), Muon()])
def test_a_tied_weight_is_in_one_group_once(config: AdamW | Muon) -> None:
    model = Named(DENSE, tied=True)
    parameters = [p for group in config.build(model).param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(model.parameters()))


def test_what_does_not_train_is_left_out() -> None:
    model = Named(DENSE)
    model.get_parameter("model.embed_tokens.weight").requires_grad_(False)
    assert "model.embed_tokens.weight" not in roles(model)


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_norms_and_biases_never_decay_and_embeddings_as_asked(kind: type, embeddings: bool) -> None:
    model = Named(DENSE | EXPERTS)
    optimizer = kind(weight_decay=0.3, decay_embeddings=embeddings).build(model)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.dim() == 1 or ("embed_" in name and not embeddings)
        assert decay[parameter] == (0.0 if spared else 0.3), name


def test_adamw_is_torch_s() -> None:
    torch.manual_seed(1)
    model, other = Named(DENSE), Named(DENSE)
    other.load_state_dict(model.state_dict())
    mine = AdamW(learning_rate=1e-2, weight_decay=0.0).build(model)
    exact = torch.optim.AdamW(other.parameters(), 1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(3):
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        exact.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
