"""Beams: with one the greedy text, with many the best there is, and every score is the model's own."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homespun.data.vocabulary import Bytes
from homespun.errors import CheckpointError, ConfigError
from homespun.generate.batch import window_start
from homespun.generate.beam import Beam, beam_search
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling, penalize
from homespun.model.decoder import Decoder, ModelConfig
from tests.kinds import ATTENTIONS

BYTES = Bytes().build([], 0)[0]
PROMPT = BYTES.encode("The cat")
CONTEXT = 16


def generator(attention: Any = ATTENTIONS["mha"], seed: int = 1, **settings: Any) -> Generator:
    torch.manual_seed(seed)
    fields = {"vocab": BYTES.vocab_size + 4, "width": 16, "layers": 2, "context": CONTEXT} | settings
    model = Decoder(ModelConfig(attention=attention, tie_embeddings=False, **fields)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 0.3)
    return Generator(model, BYTES)


def greedy_ids(writer: Generator, sampling: Sampling) -> list[int]:
    plain = sampling.model_copy(update={"temperature": 0.0, "beams": 1})
    return [token.id for token in writer.tokens([PROMPT], plain)]


@torch.no_grad()
def true_log_probabilities(writer: Generator, ids: tuple[int, ...]) -> list[float]:
    """Reads the whole window again for each token."""
    told, text = [], list(PROMPT)
    for token in ids:
        window = text[window_start(len(text), CONTEXT) :]
        told.append(writer.model(torch.tensor([window]))[0, -1].log_softmax(-1)[token].item())
        text.append(token)
    return told


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_cache_gives_each_beam_its_own_probabilities_past_the_context(kind: str) -> None:
    writer = generator(ATTENTIONS[kind])
    sampling = Sampling(max_tokens=3 * CONTEXT, beams=4)
    beams = beam_search(writer, PROMPT, sampling, 2)
    assert max(len(beam.ids) for beam in beams) > CONTEXT or kind == "latent"
    for beam in beams:
        assert beam.log_probabilities == pytest.approx(true_log_probabilities(writer, beam.ids), abs=1e-4)
        assert beam.score == pytest.approx(sum(beam.log_probabilities) / len(beam.ids))
    one = beam_search(writer, PROMPT, sampling.model_copy(update={"beams": 1}))[0]
    assert list(one.ids) == greedy_ids(writer, sampling)


CONTROLS = [
    {},
    {"length_penalty": 0.0},
    {"length_penalty": -1.5},
    {"length_penalty": 2.0},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": -0.3, "logit_bias": {65: 3.0, 256: -2.0}},
    {"stop": ["a", "é"], "logit_bias": {97: 2.0}},
]


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_one_beam_is_the_greedy_text_and_more_are_never_worse(controls: dict[str, Any]) -> None:
    better = 0
    for seed in range(12):
        writer = generator(seed=seed)
        sampling = Sampling(max_tokens=12, **controls)
        (greedy,) = beam_search(writer, PROMPT, sampling)
        assert list(greedy.ids) == greedy_ids(writer, sampling)
        for beams in (2, 5):
            best = beam_search(writer, PROMPT, sampling.model_copy(update={"beams": beams}))[0]
            assert best.score >= greedy.score - 1e-6
            better += best.score > greedy.score + 1e-3
    assert better


@torch.no_grad()
def plainly(writer: Generator, sampling: Sampling) -> list[tuple[float, list[int]]]:
    """The search without a cache or an early end, each beam by itself: scores and ids, the best first."""
    live: list[tuple[float, float, list[int]]] = [(0.0, 0.0, [])]
    greedy: list[int] = []
    ended = []
    for _ in range(sampling.max_tokens):
        candidates = []
        for key, total, ids in live:
            row = writer.row(PROMPT, sampling)
            for token in ids:
                row.take(token, 0.0)
            logits = writer.model(torch.tensor([row.ids[window_start(len(row.ids), CONTEXT) :]]))[:, -1]
            log_q = logits.log_softmax(-1)
            states = (None if each is None else each[None] for each in (row.seen, row.counts))
            shaped = penalize(logits + writer.bias, sampling, *states) - logits.logsumexp(-1)
            for token in shaped[0].topk(40).indices.tolist():
                after = key + shaped[0, token].item(), total + log_q[0, token].item(), [*ids, token]
                candidates.append((*after, ids == greedy and token == shaped.argmax().item()))
        candidates.sort(key=lambda each: -each[0])
        kept = candidates[: sampling.beams]
        kept = kept if any(each[3] for each in kept) else kept[:-1] + [each for each in candidates if each[3]]
        live = []
        for key, total, ids, is_greedy in kept:
            greedy = ids if is_greedy else greedy
            if ids[-1] == BYTES.end or len(ids) == sampling.max_tokens:
                ended.append((total / len(ids) ** sampling.length_penalty, ids))
            else:
                live.append((key, total, ids))
    return sorted(ended, reverse=True)


@pytest.mark.parametrize("controls", CONTROLS[:-1], ids=str)
def test_the_beams_are_those_of_a_plain_search(controls: dict[str, Any]) -> None:
    for seed in range(3):
        writer = generator(seed=seed)
        sampling = Sampling(max_tokens=12, beams=3, **controls)
        found = beam_search(writer, PROMPT, sampling)
        score, ids = plainly(writer, sampling)[0]
        assert (list(found[0].ids), found[0].score) == (ids, pytest.approx(score, abs=1e-4))


# -- a language that is known ------------------------------------------------------------------------------------------


class Markov(nn.Module):
    """The next letter depends on the last one alone: `table` holds log-probabilities, up to a constant."""

    def __init__(self, table: dict[str, dict[str, float]]):
        super().__init__()
        self.config = ModelConfig(vocab=BYTES.vocab_size, context=1000)
        self.head_weight = nn.Parameter(torch.zeros(BYTES.vocab_size, 1))
        self.table = torch.full((BYTES.vocab_size, BYTES.vocab_size), -1e4)
        for letter, row in table.items():
            for other, value in row.items():
                self.table[ord(letter), BYTES.end if other == "." else ord(other)] = value
        self.reads = 0

    def generator(self) -> Generator:
        return Generator(self, BYTES)  # type: ignore[arg-type]

    def new_cache(self, batch: int, capacity: int, padding: Tensor | None = None) -> list[Any]:
        return [Remembers(batch)]

    def hidden(self, tokens: Tensor, cache: list[Any]) -> tuple[Tensor, None]:
        assert tokens.size(0) == cache[0].rows
        self.reads += 1
        return tokens, None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.table[hidden]


class Remembers:
    padding = None

    def __init__(self, rows: int):
        self.rows, self.length = rows, 0

    def reorder(self, rows: Tensor) -> None:
        self.rows = len(rows)

    def truncate(self, length: int) -> None:
        pass

    def move(self, by: int, capacity: int) -> None:
        pass


def random_language(seed: int) -> Markov:
    numbers = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).log_softmax(-1).tolist()
    return Markov({letter: dict(zip("abc.", row, strict=True)) for letter, row in zip("?abc", numbers, strict=True)})


def every_text(language: Markov, most: int, penalty: float) -> dict[str, float]:
    """The score of each text of up to `most` tokens."""
    log_q = language.table.log_softmax(-1)
    scores = {}
    for size in range(most + 1):
        for letters in itertools.product("abc", repeat=size):
            text = "".join(letters)
            ids = [ord("?"), *map(ord, text)] + [BYTES.end] * (size < most)
            total = sum(log_q[before, after].item() for before, after in zip(ids, ids[1:], strict=False))
            scores[text] = total / (len(ids) - 1) ** penalty
    return scores


@pytest.mark.parametrize("penalty", [-2.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_the_best_of_all_texts(penalty: float, seed: int) -> None:
    language = random_language(seed)
    sampling = Sampling(max_tokens=4, beams=64, length_penalty=penalty)
    found = beam_search(language.generator(), BYTES.encode("?"), sampling, 6)
    scores = every_text(language, 4, penalty)
    assert [beam.score for beam in found] == pytest.approx(sorted(scores.values(), reverse=True)[:6], abs=1e-5)
    assert len({BYTES.decode(beam.ids) for beam in found}) == 6
    for beam in found:
        assert beam.score == pytest.approx(scores[BYTES.decode(beam.ids)], abs=1e-5)
        assert beam.finish == ("stop" if beam.ids[-1] == BYTES.end else "length")


def shares(table: dict[str, dict[str, float]]) -> Markov:
    """A language told by probabilities."""
    return Markov({letter: {other: math.log(p) for other, p in row.items()} for letter, row in table.items()})


@pytest.mark.parametrize(("penalty", "least", "most"), [(-2.0, 1, 1), (0.0, 1, 1), (1.0, 2, 20), (10.0, 40, 40)])
def test_the_search_ends_as_soon_as_nothing_better_can_come(penalty: float, least: int, most: int) -> None:
    after = {".": 0.9, "a": 0.05, "b": 0.05}
    language = shares({"?": {".": 0.5, "a": 0.3, "b": 0.2}, "a": after, "b": after})
    beam_search(language.generator(), BYTES.encode("?"), Sampling(max_tokens=40, beams=2, length_penalty=penalty))
    assert least <= language.reads <= most


def test_the_search_goes_on_while_something_better_may_come() -> None:
    late = shares({"?": {".": 0.6, "a": 0.3, "b": 0.1}, "a": {"a": 0.99, ".": 0.01}, "b": {".": 1.0}})
    best = beam_search(late.generator(), BYTES.encode("?"), Sampling(max_tokens=40, beams=2))[0]
    assert BYTES.decode(best.ids) == "a" * 40
    soon = shares({"?": {"a": 0.9, ".": 0.1}, "a": {".": 1.0}})
    best = beam_search(soon.generator(), BYTES.encode("?"), Sampling(max_tokens=40, beams=2, length_penalty=-1.0))[0]
    assert BYTES.decode(best.ids) == "a"


def test_the_greedy_beam_is_kept_where_all_others_are_better_at_first() -> None:
    # greedy begins with a, the best of many; what follows b and c is better than what follows a, but for the last step
    forks = {letter: {"x": 0.9, "y": 0.1} for letter in "bc"}
    table = {"?": {"a": 0.4, "b": 0.3, "c": 0.3}, "a": dict.fromkeys("defgh", 0.2), "d": {".": 1.0}} | forks
    language = shares(table | {letter: dict.fromkeys("mnopqrst", 0.125) for letter in "xy"})
    best = beam_search(language.generator(), BYTES.encode("?"), Sampling(max_tokens=3, beams=2))
    assert BYTES.decode(best[0].ids) == "ad"


# -- ends and edges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [[], ["a"], ["ab", "ca"]])
def test_a_beam_ends_where_a_row_would(stop: list[str]) -> None:
    for seed in range(4):
        writer = random_language(seed).generator()
        sampling = Sampling(max_tokens=5, beams=8, stop=stop)
        found = beam_search(writer, BYTES.encode("?"), sampling, 8)
        texts = []
        for beam in found:
            row = writer.row("?", sampling)
            tokens = [row.take(*pair) for pair in zip(beam.ids, beam.log_probabilities, strict=True)]
            assert [token.finish for token in tokens] == [None] * (len(tokens) - 1) + [beam.finish]
            texts.append("".join(token.text for token in tokens))
        assert len(set(texts)) == len(texts) == 8
        assert not any(word in text for word in stop for text in texts)
        assert [beam.score for beam in found] == sorted((beam.score for beam in found), reverse=True)


def test_texts_that_read_the_same_are_told_once() -> None:
    table = {"?": dict.fromkeys("ab.", 0.0), "a": dict.fromkeys("ab.", 0.0), "b": dict.fromkeys("ab.", 0.0)}
    sampling = Sampling(max_tokens=3, beams=16, stop=["b"])
    found = beam_search(Markov(table).generator(), BYTES.encode("?"), sampling, 16)
    possible = [beam for beam in found if beam.score > -100]
    assert len(possible) == 4  # "", "a", "aa", "aaa": whether a b or the end came after them


def test_of_texts_that_read_the_same_the_best_score_counts() -> None:
    language = shares({"?": {".": 0.5, "c": 0.5}, "c": {"b": 0.9, ".": 0.1}})
    sampling = Sampling(max_tokens=3, beams=4, stop=["cb"], length_penalty=8.0)
    assert beam_search(language.generator(), BYTES.encode("?"), sampling, 2)[0].ids == tuple(b"cb")


def test_more_texts_than_beams_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 beams cannot give 4"):
        beam_search(generator(), PROMPT, Sampling(beams=3), 4)


def test_a_model_of_nan_is_an_error() -> None:
    writer = generator()
    torch.nn.init.constant_(writer.model.model.norm.weight, math.nan)
    with pytest.raises(CheckpointError, match="not a number"):
        beam_search(writer, PROMPT, Sampling(beams=3))


def test_nothing_but_text_and_the_end_is_written() -> None:
    writer = generator(context=64)
    for beam in beam_search(writer, PROMPT, Sampling(beams=64, max_tokens=3), 64):
        assert isinstance(beam, Beam) and all(token <= BYTES.end for token in beam.ids)
