"""Causal latent attention: blocks at once and token by token are one, nothing flows back, the memory carries far."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from homespun import config
from homespun.errors import ConfigError
from homespun.model.attention import CausalLatentAttention, GroupedAttention
from homespun.model.attention.core import attend_where
from homespun.model.cost import cost
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import SwiGLU
from homespun.model.norms import RootMeanSquare
from homespun.model.positions import LearnedPositions, RotaryPositions, Rotation, rotate

W, L, M, WIDTH, V = 8, 3, 2, 16, 29
LENGTHS = (1, 7, 8, 9, 16, 17, 40, 45)
KINDS = {
    "rotary": {"positions": RotaryPositions()},
    "learned": {"positions": LearnedPositions()},
    "grouped": {"attention": {"kv_heads": 2}},
    "partial": {"positions": RotaryPositions(fraction=0.5), "attention": {"kv_heads": 1, "head_size": 8}},
    "short-memory": {"attention": {"memory": 1}},
    "long-memory": {"attention": {"memory": 9}},
}


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch):
    """The norms round to fp32 whatever they are given; here every bit of fp64 counts."""

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    monkeypatch.setattr(RootMeanSquare, "forward", forward)


def settings(**more) -> ModelConfig:
    attention = CausalLatentAttention(**{"heads": 4, "block": W, "latents": L, "memory": M} | more.pop("attention", {}))
    parts = {"vocab": V, "width": WIDTH, "layers": 2, "context": 64, "feed_forward": SwiGLU(hidden=24)}
    return ModelConfig(attention=attention, **parts | more)


def build(model: ModelConfig) -> Decoder:
    """In fp64, with weights large enough for every path to matter."""
    torch.manual_seed(1)
    decoder = Decoder(model).eval().double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, 0.0, 0.3)
            else:
                parameter += torch.randn_like(parameter) * 0.1
    return decoder


@pytest.fixture(params=KINDS)
def model(request) -> Decoder:
    return build(settings(**KINDS[request.param]))


@pytest.fixture
def plain() -> Decoder:
    return build(settings())


TOKENS = torch.randint(V, (3, 45), generator=torch.Generator().manual_seed(3))


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def read(model, tokens, cache, sizes):
    """The logits of tokens given in pieces of these sizes, and then one by one."""
    out, at = [], 0
    while at < tokens.size(1):
        size = sizes.pop(0) if sizes else 1
        out.append(model(tokens[:, at : at + size], cache))
        at += size
    return torch.cat(out, 1)


def formula(layer, x):
    """The definition, one block and one token after the other, for one sequence (T, d)."""
    c, size = layer.config, layer.head_size

    def heads(x):  # (n, H * D) -> (H, n, D)
        return x.unflatten(-1, (-1, size)).transpose(0, 1)

    def turned(x, place):
        if not isinstance(layer.rotation, Rotation):
            return x
        place = torch.tensor(place)
        cos, sin = layer.rotation.tables(int(place.max()) + 1, x.device)
        return rotate(x, cos[place].to(x.dtype), sin[place].to(x.dtype))

    def attention(q, k, v):  # (H, n, D) -> (n, H * D)
        groups = q.size(0) // k.size(0)
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        return ((q @ k.mT / size**0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)

    q, k, v = heads(layer.q_proj(x)), heads(layer.k_proj(x)), heads(layer.v_proj(x))
    every = list(range(len(x)))
    q, k = turned(q, every), turned(k, every)
    told, memory, out = {}, {}, []
    for block in range(-1, len(x) // c.block):
        place, own = (block + 1) * c.block, slice(block * c.block, (block + 1) * c.block)
        z = layer.latents
        if block >= 0:
            asked = turned(heads(layer.read_q_proj(layer.read_norm(z))), place)
            z = z + layer.read_o_proj(attention(asked, k[:, own], v[:, own]))
        n = layer.latent_norm(z)
        told[block] = turned(heads(layer.latent_k_proj(n)), place), heads(layer.latent_v_proj(n))
        near = [told[b] for b in range(max(-1, block - c.memory + 1), block + 1)]
        asked = turned(heads(layer.latent_q_proj(n)), place)
        z = z + layer.latent_o_proj(attention(asked, *(torch.cat(part, 1) for part in zip(*near, strict=True))))
        n = layer.memory_norm(z)
        memory[block] = turned(heads(layer.k_proj(n)), place), heads(layer.v_proj(n))
    for t in every:
        block = t // c.block
        seen = [memory[b] for b in range(max(-1, block - c.memory), block)]
        seen.append((k[:, max(0, t - c.block + 1) : t + 1], v[:, max(0, t - c.block + 1) : t + 1]))
        out.append(attention(q[:, t : t + 1], *(torch.cat(part, 1) for part in zip(*seen, strict=True))))
    return layer.o_proj(torch.cat(out))


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_definition(model, length):
    layer, x = model.model.layers[0].self_attn, torch.randn(2, length, WIDTH, dtype=torch.float64)
    same(layer(x), torch.stack([formula(layer, row) for row in x]))


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
def test_step_by_step_equals_the_full_forward(model, length):
    same(read(model, TOKENS[:, :length], model.new_cache(3, length), []), model(TOKENS[:, :length]))


@torch.no_grad()
def test_every_split_and_every_size_of_pieces_equals_the_full_forward(model):
    full = model(TOKENS)
    for split in range(1, 45):
        same(read(model, TOKENS, model.new_cache(3, 45), [split, 45 - split]), full)
    for size in (2, 3, 5, 7, 8, 9, 15, 16, 17):
        same(read(model, TOKENS, model.new_cache(3, 45), [size] * 45), full)
    for split in (7, 8, 9, 31):
        same(read(model, TOKENS, model.new_cache(3, 45), [split]), full)


@torch.no_grad()
def test_a_prefix_does_not_know_what_follows(model):
    full = model(TOKENS)
    for t in range(1, 46):
        same(model(TOKENS[:, :t]), full[:, :t])


def test_no_gradient_to_the_future_and_one_to_the_first_token(model):
    inputs = []
    handle = model.model.embed_tokens.register_forward_hook(lambda m, i, o: inputs.append(o.requires_grad_()) or o)
    logits = model(TOKENS)
    handle.remove()
    for t in range(45):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), inputs[0], retain_graph=True)
        assert gradient[:, t + 1 :].abs().sum() == 0.0
        assert (gradient[:, t].abs().sum(-1) > 0).all()
    reached = gradient[:, 0].abs().sum(-1)  # windows of two layers would reach 14 tokens back, not 44
    assert (reached > 0).all() if model.config.attention.memory > 1 else (reached == 0).all()


@torch.no_grad()
def test_the_state_does_not_grow(plain):
    cache, sizes = plain.new_cache(3, 45), set()
    for t in range(45):
        plain(TOKENS[:, t : t + 1], cache)
        sizes.add(sum(layer.nbytes() for layer in cache))
        assert cache[0].length == t + 1
    numbers = plain.config.attention.state_numbers(plain.config)
    assert sizes == {2 * 3 * 8 * numbers}
    assert cost(plain.config, item=8).cache_state * 3 == sizes.pop() and cost(plain.config).cache_per_token == 0


@torch.no_grad()
def test_truncate_takes_back_up_to_a_block(model):
    other = torch.randint(V, (3, 45), generator=torch.Generator().manual_seed(4))
    for length, steps in ((5, 1), (16, 3), (23, 7), (24, 1), (25, 2), (40, 8)):
        for back in range(0, min(W, length) + 1, steps):
            cache = model.new_cache(3, 45)
            model(TOKENS[:, :length], cache)
            changed = torch.cat((TOKENS[:, : length - back], other[:, length - back :]), 1)
            for layer in cache:
                layer.truncate(length - back)
            rest = read(model, changed[:, length - back :], cache, [3, 1, W, 45])
            same(rest, model(changed)[:, length - back :])


@torch.no_grad()
def test_truncate_again_and_again_or_to_nothing(model):
    """Speculation: a few tokens are tried, and some of them taken back, all the time."""
    full, cache = model(TOKENS), model.new_cache(3, 45)
    at, generator = 0, torch.Generator().manual_seed(5)
    while at < 40:
        tried = torch.randint(V, (3, 5), generator=generator)
        tried[:, :2] = TOKENS[:, at : at + 2]
        same(model(tried, cache)[:, :2], full[:, at : at + 2])
        at += 2
        for layer in cache:
            layer.truncate(at)
    same(model(TOKENS[:, at:], cache), full[:, at:])
    for layer in cache:
        layer.truncate(0)
    same(model(TOKENS, cache), full)


@torch.no_grad()
def test_truncate_to_anything_while_nothing_is_overwritten_and_no_further(plain):
    full = plain(TOKENS)
    for length in range(2 * W + 1):
        cache = plain.new_cache(3, 45)
        plain(TOKENS[:, : 2 * W], cache)
        for layer in cache:
            layer.truncate(length)
        same(plain(TOKENS[:, length:], cache), full[:, length:])
    with pytest.raises(IndexError, match="only 8 of 45 tokens read"):
        cache[0].truncate(45 - W - 1)
    cache[0].truncate(45 - W)
    with pytest.raises(IndexError, match="only 8 of 45 tokens read"):
        cache[0].truncate(45 - W - 1)
    for impossible in (46, -1):
        with pytest.raises(IndexError, match="cannot truncate a cache of"):
            cache[0].truncate(impossible)


@torch.no_grad()
@pytest.mark.parametrize("length", [5, 16, 29])
@pytest.mark.parametrize("padding", [None, torch.tensor([0, 3, 5])])
def test_reordered_rows_go_on_as_their_originals(model, length, padding):
    for rows in (torch.tensor([2, 0, 0, 1, 2]), torch.tensor([1])):
        cache, straight = model.new_cache(3, 45, padding), model.new_cache(3, 45, padding)
        expected = model(TOKENS, straight)[rows, length:]
        model(TOKENS[:, :length], cache)
        for layer in cache:
            layer.reorder(rows)
        same(read(model, TOKENS[rows, length:], cache, [4, 1, 11, 8]), expected)


@torch.no_grad()
def test_a_padded_row_is_as_if_alone(model):
    """Also where whole blocks are padding, and where rows end their blocks at different times."""
    padding = torch.tensor([0, 3, 8, 21, 30])
    tokens = torch.randint(V, (5, 45), generator=torch.Generator().manual_seed(6))
    for sizes in ([45], [1] * 45, [31, 14], [32, 5], [44, 1], [8] * 6, [5] * 9):
        cache = model.new_cache(5, 45, padding)
        out = read(model, tokens, cache, list(sizes))
        assert out.isfinite().all()
        for row, pad in enumerate(padding.tolist()):
            same(out[row, pad:], model(tokens[row : row + 1, pad:])[0])
    for layer in cache:
        layer.truncate(45 - W)
    same(model(tokens[:, 45 - W :], cache), out[:, 45 - W :])


@torch.no_grad()
def test_rows_do_not_know_each_other(plain):
    full = plain(TOKENS)
    for row in range(3):
        same(plain(TOKENS[row : row + 1]), full[row : row + 1])


def test_every_parameter_gets_a_gradient(model):
    model(TOKENS[:, : 2 * W]).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("length", LENGTHS)
def test_costs_are_exact(model, length):
    costs = cost(model.config, length=length, causal=False)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(TOKENS[:, :length])
    assert counter.get_total_flops() == pytest.approx(costs.forward_flops * 3 * length, rel=1e-12)
    assert cost(model.config, length=length).forward_flops < costs.forward_flops


def test_flops_of_what_is_seen_are_linear_in_the_length():
    model = settings(attention={"block": 16, "latents": 4, "memory": 4}, context=2**16)
    per_token = [cost(model, length).forward_flops for length in (2**10, 2**15)]
    assert per_token[1] < 1.05 * per_token[0]


def test_explicit_masks_equal_the_formula():
    q, k, v = torch.randn(5, 4, 3, 8), torch.randn(5, 2, 7, 8), torch.randn(5, 2, 7, 8)
    wide_k, wide_v = (each.repeat_interleave(2, 1) for each in (k, v))
    scores = q @ wide_k.mT / 8**0.5
    torch.testing.assert_close(attend_where(q, k, v, None), scores.softmax(-1) @ wide_v)
    for shape in ((5, 1, 3, 7), (1, 1, 3, 7), (5, 1, 1, 7)):
        seen = torch.rand(shape) < 0.5
        seen[..., 0] = True
        expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ wide_v
        torch.testing.assert_close(attend_where(q, k, v, seen), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_the_cache_is_of_the_weights_type(plain, dtype):
    model = plain.to(dtype)
    cache = model.new_cache(3, 45)
    assert {store.dtype for layer in cache for store in layer.tokens + layer.among} == {dtype}
    with torch.autocast("cpu", torch.bfloat16):
        assert read(model, TOKENS, cache, [20]).isfinite().all()


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ({"heads": 5}, "does not divide"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"heads": 4, "head_size": 3}, "turn pairs"),
        ({"heads": 4, "block": 256}, "ends no block"),
        ({"heads": 4, "block": 0}, "block"),
        ({"heads": 4, "latents": 0}, "latents"),
        ({"heads": 4, "memory": 0}, "memory"),
        ({"heads": 4, "window": 5}, "window"),
    ],
)
def test_impossible_settings_are_errors_that_name_the_key(attention, said):
    with pytest.raises(ConfigError, match=said):
        config.parse(ModelConfig, {"width": 64, "attention": {"kind": "latent"} | attention})


def test_settings_round_trip(model):
    assert config.parse(ModelConfig, config.read_yaml(config.to_yaml(model.config))) == model.config


NAMES, NOISE = 8, 4


def riddles(count, generator):
    """32 tokens: a name somewhere in the first block, noise, and in the end the question which name it was."""
    tokens = torch.randint(NAMES, NAMES + NOISE, (count, 32), generator=generator)
    names = torch.randint(NAMES, (count,), generator=generator)
    tokens[torch.arange(count), torch.randint(W, (count,), generator=generator)] = names
    tokens[:, -1] = NAMES + NOISE
    return tokens, names


@pytest.mark.parametrize("kind", ["latent", "grouped"])
def test_it_recalls_from_beyond_the_window(kind):
    """A name at least 24 tokens back; two layers with windows of 8 see 14 back."""
    attention = {
        "latent": CausalLatentAttention(heads=2, block=W, latents=4, memory=4),
        "grouped": GroupedAttention(heads=2, window=W),
    }[kind]
    parts = {"vocab": NAMES + NOISE + 1, "width": 32, "layers": 2, "context": 32, "feed_forward": SwiGLU(hidden=64)}
    torch.manual_seed(0)
    model, generator = Decoder(ModelConfig(attention=attention, **parts)), torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.1)  # the usual 0.02 is for wider models, and learns slowly here
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        tokens, names = riddles(64, generator)
        F.cross_entropy(model(tokens)[:, -1], names).backward()
        optimizer.step()
        optimizer.zero_grad()
    tokens, names = riddles(1000, generator)
    with torch.no_grad():
        right = (model(tokens)[:, -1].argmax(-1) == names).float().mean().item()
    assert right > 0.99 if kind == "latent" else right < 0.25  # chance: 1 of 8
