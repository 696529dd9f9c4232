"""What is written does not depend on caches, batches, chunks or cuts; and it ends where it should."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bpe, Bytes
from homespun.errors import CheckpointError, ConfigError, DataError
from homespun.generate import batch, engine
from homespun.generate.batch import window_start
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.positions import LearnedPositions, RotaryPositions

TEXT = "the cat sat on the mat, and the dog saw the naïve café. " * 20
CONTEXT = 12

BYTES = Bytes().build([], 0)[0]
WORDS = Bpe(size=320).build([TEXT], len(TEXT))[0]

KINDS: dict[str, dict[str, Any]] = {
    "multi-head": {"attention": GroupedAttention(heads=4)},
    "grouped, normed": {"attention": GroupedAttention(heads=4, kv_heads=2, qk_norm=True), "softcap": 5.0},
    "window": {"attention": GroupedAttention(heads=4, kv_heads=1, window=5)},
    "chunks": {"attention": GroupedAttention(heads=4, query_chunk=3)},
    "learned positions": {"attention": GroupedAttention(heads=2), "positions": LearnedPositions()},
}


def decoder(tokenizer: Tokenizer = BYTES, pad_vocabulary: int = 0, **settings: Any) -> Decoder:
    torch.manual_seed(1)
    fields = {"context": CONTEXT, "width": 32, "layers": 2, "attention": GroupedAttention(heads=4)} | settings
    vocab = tokenizer.vocab_size + pad_vocabulary
    model = Decoder(ModelConfig(vocab=vocab, tie_embeddings=False, **fields)).eval()
    for parameter in model.parameters():  # far from zero: choices are no near ties, and texts do not loop at once
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 0.3)
    return model


@torch.no_grad()
def uncached_greedy(model: Decoder, tokenizer: Tokenizer, ids: Sequence[int], count: int) -> list[int]:
    """The plain reference: read the newest tokens again for each token, under the rule as the guide words it."""
    window, written = [], []
    allowed = torch.from_numpy(tokenizer.token_bytes() > 0)
    allowed[tokenizer.end] = True
    for token in ids:
        window = _add(window, token, model.config.context)
    for _ in range(count):
        logits = model(torch.tensor([window]))[0, -1, : tokenizer.vocab_size].float()
        written.append(int(logits.masked_fill(~allowed, -math.inf).argmax()))
        if written[-1] == tokenizer.end:
            break
        window = _add(window, written[-1], model.config.context)
    return written


def _add(window: list[int], token: int, context: int) -> list[int]:
    """When the window is full, its newest half is kept, the new token among it."""
    window = [*window, token]
    return window if len(window) <= context else window[-max(1, context // 2) :]


def ids_of(generator: Generator, prompt: Any, sampling: Sampling) -> list[int]:
    return [token.id for token in generator.tokens([prompt], sampling)]


def greedy(count: int, **settings: Any) -> Sampling:
    return Sampling(max_tokens=count, temperature=0, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_greedy_equals_uncached_for_every_split_point_past_the_context(kind: str) -> None:
    model = decoder(**KINDS[kind])
    generator = Generator(model, BYTES)
    prompt = BYTES.encode("The ")
    whole = ids_of(generator, prompt, greedy(3 * CONTEXT))
    assert len(set(whole)) > 10
    assert whole == uncached_greedy(model, BYTES, prompt, 3 * CONTEXT)
    for split in range(1, len(whole)):
        assert ids_of(generator, [*prompt, *whole[:split]], greedy(len(whole) - split)) == whole[split:], split


@pytest.mark.parametrize("split", [1, 7, 30, 41])
def test_sampled_text_goes_on_from_every_split_as_if_uninterrupted(split: int) -> None:
    generator = Generator(decoder(), BYTES)
    prompt, sampling = BYTES.encode("Once"), Sampling(max_tokens=60, seed=6, repetition_penalty=1.2)
    whole = ids_of(generator, prompt, sampling)
    assert len(whole) == 60
    rest = sampling.model_copy(update={"max_tokens": 60 - split})
    assert ids_of(generator, [*prompt, *whole[:split]], rest) == whole[split:]


@pytest.mark.parametrize("context", [1, 2, 3, 8, 9])
def test_the_window_keeps_its_newest_half_when_it_is_full(context: int) -> None:
    window: list[int] = []
    for token in range(60):
        window = _add(window, token, context)
        assert window_start(token + 1, context) == window[0]
    model = decoder(context=context)
    assert ids_of(Generator(model, BYTES), [65], greedy(30)) == uncached_greedy(model, BYTES, [65], 30)


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 5 * CONTEXT + 3])
def test_a_prompt_longer_than_the_context_keeps_its_newest_part(length: int) -> None:
    model = decoder(positions=LearnedPositions())
    prompt = BYTES.encode(TEXT)[:length]
    assert ids_of(Generator(model, BYTES), prompt, greedy(40)) == uncached_greedy(model, BYTES, prompt, 40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_of_ragged_prompts_equals_each_alone(kind: str, temperature: float) -> None:
    sampling = Sampling(max_tokens=50, temperature=temperature, top_p=0.95, seed=3)
    generator = Generator(decoder(**KINDS[kind]), BYTES)
    prompts = ["a", "", TEXT, "some words", "the cat sat on the mat", "a"]
    seeds = [sampling.model_copy(update={"seed": (sampling.seed or 0) + row}) for row in range(len(prompts))]
    alone = [generator.generate(prompt, own) for prompt, own in zip(prompts, seeds, strict=True)]
    assert generator.batch(prompts, sampling) == alone


def test_more_prompts_than_a_batch_holds_equal_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, sampling = Generator(decoder(), BYTES), Sampling(max_tokens=5, seed=1)
    prompts = ["abcdefg"[: n % 7] for n in range(20)]
    whole = generator.batch(prompts, sampling)
    monkeypatch.setattr(engine, "ROWS", 3)
    assert generator.batch(prompts, sampling) == whole


def test_a_prompt_read_in_chunks_is_the_same_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(decoder(context=200), BYTES)
    prompts = [TEXT[:150], TEXT[3:90]]
    whole = generator.batch(prompts, greedy(20))
    lengths = read_shapes(generator.model)
    monkeypatch.setattr(batch, "CHUNK", 7)
    assert generator.batch(prompts, greedy(20)) == whole
    assert max(length for _, length in lengths) == 7


def test_a_prompt_that_stands_several_times_is_read_once() -> None:
    generator = Generator(decoder(), BYTES)
    shapes = read_shapes(generator.model)
    completions = generator.complete(["a prompt"], Sampling(max_tokens=6, seed=1), count=4)
    assert shapes[0] == (1, 8) and {rows for rows, _ in shapes[1:]} <= {1, 2, 3, 4}
    assert [c.text for c in completions] == [
        generator.generate("a prompt", Sampling(max_tokens=6, seed=1 + row)) for row in range(4)
    ]


def read_shapes(model: Decoder) -> list[tuple[int, int]]:
    """Notes the shape (B, T) of all that the model reads."""
    shapes: list[tuple[int, int]] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def test_samples_of_one_prompt_differ_and_each_tells_the_seed_that_gives_it_again() -> None:
    generator = Generator(decoder(), BYTES)
    completions = generator.complete(["x", "y"], Sampling(max_tokens=20, seed=40), count=3)
    assert [c.prompt for c in completions] == ["x"] * 3 + ["y"] * 3
    assert [c.seed for c in completions] == [40, 41, 42, 43, 44, 45]
    assert len({c.text for c in completions}) == 6
    for c in completions:
        assert generator.generate(c.prompt, Sampling(max_tokens=20, seed=c.seed)) == c.text


def test_without_a_seed_each_text_is_another_and_can_be_had_again() -> None:
    generator = Generator(decoder(), BYTES)
    first, second = (generator.complete(["x"], Sampling(max_tokens=30))[0] for _ in range(2))
    assert first.text != second.text
    assert generator.generate("x", Sampling(max_tokens=30, seed=first.seed)) == first.text


def test_the_empty_prompt_is_the_start_of_a_document() -> None:
    generator = Generator(decoder(), BYTES)
    assert generator.generate("", greedy(20)) == generator.generate([BYTES.end], greedy(20))


def test_log_probabilities_are_the_models_own_whatever_the_controls() -> None:
    model = decoder(pad_vocabulary=3, context=64)
    generator = Generator(model, BYTES)
    sampling = Sampling(max_tokens=15, seed=2, temperature=1.7, top_k=5, repetition_penalty=1.3)
    tokens = list(generator.tokens(["The cat"], sampling, alternatives=4))
    ids = BYTES.encode("The cat") + [token.id for token in tokens]
    truth = model(torch.tensor([ids]))[0].detach().log_softmax(-1)[6:-1]
    for token, row in zip(tokens, truth, strict=True):
        assert token.log_probability == pytest.approx(row[token.id].item(), abs=1e-4)
        best = row.topk(4)
        assert [a.id for a in token.alternatives] == best.indices.tolist()
        assert [a.log_probability for a in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_only_text_and_the_end_are_ever_drawn() -> None:
    model = decoder(WORDS, pad_vocabulary=50)
    with torch.no_grad():
        model.head_weight.mul_(0.001)  # nearly uniform: every id would come up
    ids = {token.id for token in Generator(model, WORDS).tokens(["a"] * 64, Sampling(max_tokens=60, seed=1))}
    special = set(WORDS.special.values())
    assert ids & special == {WORDS.end} and max(ids) < WORDS.vocab_size and len(ids) > 200


def test_bf16_weights_and_training_mode_work_and_are_left_as_they_were() -> None:
    model = decoder(dropout=0.5)
    expected = Generator(model, BYTES).generate("x", greedy(30))
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    for _ in Generator(model, BYTES).stream("x", greedy(5)):
        assert [module.training for module in model.modules()] == before  # also between two pieces
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert Generator(model, BYTES).generate("x", greedy(30)) == expected
    assert [module.training for module in model.modules()] == before
    assert len(list(Generator(model.bfloat16(), BYTES).tokens(["x"], Sampling(max_tokens=30, seed=1)))) == 30


@pytest.mark.parametrize("positions", [RotaryPositions(), LearnedPositions()])
def test_a_model_can_be_trained_after_it_has_written(positions: Any) -> None:
    model = decoder(positions=positions)
    Generator(model, BYTES).batch(["x", "some"], greedy(30))
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.head_weight.grad is not None


def test_a_vocabulary_larger_than_the_models_is_an_error() -> None:
    with pytest.raises(ConfigError, match="290 ids"):
        Generator(decoder(BYTES), WORDS)


def test_unknown_ids_and_text_that_is_no_unicode_are_errors() -> None:
    generator = Generator(decoder(), BYTES)
    for prompt in ([9999], [-1], "\ud800"):
        with pytest.raises(DataError):
            generator.generate(prompt)  # type: ignore[arg-type]


def test_a_model_of_nan_is_an_error() -> None:
    model = decoder()
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    for sampling in (greedy(3), Sampling(max_tokens=3, top_p=0.9, top_k=4)):
        with pytest.raises(CheckpointError, match="not a number"):
            Generator(model, BYTES).generate("x", sampling)


# -- where a text ends: a stand-in whose text is known ----------------------------------------------------------------


class Script(nn.Module):
    """Writes `script` from the place after the prompt on: token n of any row is `script[n]`."""

    def __init__(self, tokenizer: Tokenizer, script: Sequence[int], context: int = 1000):
        super().__init__()
        self.config = ModelConfig(vocab=tokenizer.vocab_size, context=context)
        self.script, self.end = list(script), tokenizer.end
        self.head_weight = nn.Parameter(torch.zeros(tokenizer.vocab_size, 1))
        self.rows: list[int] = []

    def new_cache(self, batch: int, capacity: int, padding: Tensor | None = None) -> list[Any]:
        return [ScriptCache(batch, padding)]

    def hidden(self, tokens: Tensor, cache: list[Any]) -> tuple[Tensor, None]:
        self.rows.append(tokens.size(0))
        cache[0].length += tokens.size(1)
        return (cache[0].length - cache[0].padding)[:, None, None].expand(tokens.size(0), 1, 1), None

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(len(hidden), self.config.vocab)
        for row, place in enumerate(hidden.flatten().tolist()):
            logits[row, self.script[place] if place < len(self.script) else self.end] = 100.0
        return logits


class ScriptCache:
    def __init__(self, batch: int, padding: Tensor | None):
        self.length, self.padding = 0, torch.zeros(batch, dtype=torch.int64) if padding is None else padding

    def reorder(self, rows: Tensor) -> None:
        self.padding = self.padding[rows]


def writer(text: str, tokenizer: Tokenizer = BYTES, **settings: Any) -> Generator:
    """A generator that goes on with the rest of `text`, whatever the prompt of the same length."""
    return Generator(Script(tokenizer, tokenizer.encode(text), **settings), tokenizer)  # type: ignore[arg-type]


def test_the_end_token_ends_a_row_and_is_told() -> None:
    (done,) = writer("a text").complete(["a"], greedy(100))
    assert (done.text, done.finish) == (" text", "stop")
    assert done.tokens[-1].id == BYTES.end and done.tokens[-1].text == "" and len(done.tokens) == 6


def test_other_special_tokens_end_a_row_only_where_they_are_named() -> None:
    turn = BYTES.special["<|user|>"]
    script = [*BYTES.encode("a t"), turn, *BYTES.encode("ext")]
    model = Script(BYTES, script)
    (done,) = Generator(model, BYTES, ends=[turn, 65]).complete(["a"], greedy(100))  # type: ignore[arg-type]
    assert (done.text, done.finish, done.tokens[-1].id) == (" t", "stop", turn)
    assert turn not in [token.id for token in Generator(model, BYTES).tokens(["a"], greedy(5))]  # type: ignore[arg-type]


def test_a_text_is_exactly_as_long_as_asked() -> None:
    for count in (1, 2, 3):
        (done,) = writer("a text").complete(["a"], greedy(count))
        assert (done.text, done.finish, len(done.tokens)) == (" text"[:count], "length", count)


def test_rows_that_have_ended_are_computed_no_more() -> None:
    generator = writer("0123456789")
    assert generator.batch(["01234567", "0", "0123"], greedy(100)) == ["89", "123456789", "456789"]
    assert generator.model.rows == [3] * 3 + [2] * 4 + [1] * 3  # prompt and steps; each row ends with the end token


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "bpe"])
@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["the mat"], "he cat sat on "),
        (["mat, and", "t on"], "he cat sa"),
        (["sat on the moon", "dog"], "he cat sat on the mat, and the "),
        (["never there"], "he cat sat on the mat, and the dog"),
        (["dogs"], "he cat sat on the mat, and the dog"),  # held back at the end, and then given
        (["h"], ""),
    ],
)
def test_a_stop_string_ends_a_text_across_tokens_and_never_shows(
    tokenizer: Tokenizer, stops: list[str], expected: str
) -> None:
    script = tokenizer.encode("t") + tokenizer.encode("he cat sat on the mat, and the dog")
    generator, shown = Generator(Script(tokenizer, script), tokenizer), ""
    for piece in generator.stream("t", greedy(100, stop=stops)):
        assert piece
        shown += piece
        assert expected.startswith(shown)
    assert shown == expected == generator.generate("t", greedy(100, stop=stops))
    (done,) = generator.complete(["t"], greedy(100, stop=stops))
    assert done.finish == "stop" and "".join(token.text for token in done.tokens) == expected


def test_a_stop_string_in_the_prompt_stops_nothing() -> None:
    assert writer("stop and go").generate("stop", greedy(50, stop=["stop", "p a"])) == " and go"


def test_a_stream_never_breaks_a_character() -> None:
    text = "a naïve café 🎈🎈 日本"
    pieces = list(writer(text).stream("a", greedy(100)))
    assert "".join(pieces) == text[1:] and "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(text) - 1  # each character as soon as its last byte is there


def test_a_character_that_is_unfinished_at_the_end_is_left_out() -> None:
    generator = writer("a🎈")
    for count, expected in ((1, ""), (3, ""), (4, "🎈")):
        assert generator.generate("a", greedy(count)) == expected
        assert "".join(generator.stream("a", greedy(count))) == expected


def test_json_of_a_completion_holds_what_the_guide_says() -> None:
    (done,) = writer("ab").complete(["a"], greedy(5, seed=9), alternatives=2)
    data = done.to_dict()
    assert list(data) == ["prompt", "text", "finish", "seed", "tokens"]
    assert (data["prompt"], data["text"], data["finish"], data["seed"]) == ("a", "b", "stop", 9)
    assert [list(token) for token in data["tokens"]] == [["id", "text", "log_probability", "alternatives"]] * 2
    assert list(data["tokens"][0]["alternatives"][0]) == ["id", "text", "log_probability"]
    assert data["tokens"][0]["alternatives"][0]["text"] == "b"
