"""Texts that join and leave a batch between tokens, against each of them alone; for every kind of cache."""

import random

import pytest
import torch

from homespun.generate import engine
from homespun.generate.batch import Batch
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from tests.generate.test_engine import BYTES, decoder
from tests.kinds import ATTENTIONS, FEED_FORWARDS, POSITIONS

TEXT = "the cat sat on the mat and the dog ran to the house where the bird sang all day long " * 3


def alone(generator: Generator, prompt: str, sampling: Sampling) -> list[int]:
    return [token.id for token in generator.tokens([prompt], sampling)]


def asked(number: int, chance: random.Random) -> tuple[str, Sampling]:
    start = chance.randrange(len(TEXT) - 120)
    settings = [{}, {"temperature": 0}, {"top_k": 20, "frequency_penalty": 1.5}, {"repetition_penalty": 1.3}]
    prompt = TEXT[start : start + chance.choice([0, 1, 5, 17, 40, 110])]
    return prompt, Sampling(seed=number, max_tokens=chance.choice([1, 3, 20, 60]), **settings[number % 4])


def differences(generator: Generator, chance: random.Random, part: int | None, count: int = 14) -> list[int]:
    """Writes texts that come one after another into a batch; which of them became another text than alone."""
    requests = [asked(number, chance) for number in range(count)]
    rows = [generator.row(prompt, sampling) for prompt, sampling in requests]
    batch, coming = generator.new_batch(part), list(rows)
    while coming or batch.busy:
        for row in coming[: chance.choice([0, 0, 1, 3])]:
            batch.add(row)
            coming.remove(row)
        batch.step()
    return [
        number
        for number, (row, (prompt, sampling)) in enumerate(zip(rows, requests, strict=True))
        if row.ids[row.prompt :] != alone(generator, prompt, sampling)
    ]


@pytest.mark.parametrize("part", [None, 4, 64])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_text_is_the_same_alone_and_in_changing_company(attention: str, part: int | None) -> None:
    generator = Generator(decoder(attention=ATTENTIONS[attention], context=48).double(), BYTES)
    assert not differences(generator, random.Random(attention), part)


@pytest.mark.parametrize("parts", [{"feed_forward": FEED_FORWARDS["experts"]}, {"positions": POSITIONS["learned"]}])
def test_so_it_is_with_experts_and_with_learned_positions(parts: dict) -> None:
    assert not differences(Generator(decoder(context=48, **parts).double(), BYTES), random.Random(3), 16)


def test_packed_matrices_write_the_same_in_company() -> None:
    assert not differences(Generator(decoder(context=48, attention=ATTENTIONS["gqa"]), BYTES), random.Random(4), 16)


def test_a_text_that_is_dropped_is_written_no_more_and_leaves_the_others_alone() -> None:
    generator = Generator(decoder(context=48).double(), BYTES)
    batch = generator.new_batch(16)
    rows = [generator.row(TEXT[n : n + 9], Sampling(seed=n, max_tokens=30)) for n in range(4)]
    for row in rows:
        batch.add(row)
    for _ in range(5):
        batch.step()
    batch.drop(rows[1])
    written = len(rows[1].ids)
    waiting = generator.row("never read", Sampling(max_tokens=5))
    batch.add(waiting)
    batch.drop(waiting)
    while batch.busy:
        assert rows[1] not in [row for row, _ in batch.step()]
    assert len(rows[1].ids) == written and waiting.written == 0
    for number in (0, 2, 3):
        row = rows[number]
        assert row.ids[row.prompt :] == alone(
            generator, TEXT[number : number + 9], Sampling(seed=number, max_tokens=30)
        )


def test_a_text_that_is_dropped_while_its_prompt_is_read_gets_no_token() -> None:
    generator = Generator(decoder(context=48).double(), BYTES)
    batch = generator.new_batch(8)
    running = generator.row("abc", Sampling(seed=5, max_tokens=40))
    batch.add(running)
    batch.step()
    pair = [generator.row(TEXT[n : n + 30], Sampling(seed=n, max_tokens=8)) for n in (0, 1)]
    for row in pair:
        batch.add(row)
    batch.step()
    batch.drop(pair[0])
    while batch.busy:
        batch.step()
    assert pair[0].written == 0
    assert pair[1].ids[30:] == alone(generator, TEXT[1:31], Sampling(seed=1, max_tokens=8))


def test_a_long_prompt_is_read_in_parts_between_the_tokens_of_the_others() -> None:
    generator = Generator(decoder(context=200), BYTES)
    batch = generator.new_batch(part=16)
    short, long = generator.row("abc", Sampling(max_tokens=90, seed=1)), generator.row(TEXT[:150], Sampling(seed=2))
    batch.add(short)
    batch.step()
    batch.add(long)
    while not long.written:
        before = short.written
        batch.step()
        assert short.written == before + 1 or short.done
    assert short.written >= 150 // 16 or short.done


def test_the_cache_does_not_outgrow_what_its_texts_need() -> None:
    generator = Generator(decoder(context=64), BYTES)
    batch, sizes = generator.new_batch(16), []
    for number in range(60):
        batch.add(generator.row("ab", Sampling(seed=number, max_tokens=6)))
        batch.step()
        sizes.append(batch.cache_slots)
    assert max(sizes) <= 2 * (2 + 6)


CONTROLS = [
    {}, {"temperature": 0}, {"temperature": 0.3}, {"top_k": 9}, {"top_p": 0.7}, {"min_p": 0.1}, {"typical_p": 0.6},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}, {"frequency_penalty": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("controls", CONTROLS)
def test_where_rounding_could_change_a_choice_the_text_alone_decides(
    controls: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(decoder(context=48), BYTES)
    honest = Batch._onwards

    def texts(noise: float, seed: int) -> list[list[int]]:
        """Written with logits that are off by up to half of what is allowed for, each time otherwise."""
        torch.manual_seed(seed)
        monkeypatch.setattr(
            Batch, "_onwards", lambda self: (x := honest(self)) + (torch.rand_like(x) - 0.5) * x.abs().amax() * 0.01
        )
        monkeypatch.setattr(engine, "NOISE", noise)
        rows = [generator.row(TEXT[n : n + 9], Sampling(seed=n, max_tokens=60, **controls)) for n in range(8)]
        batch = generator.new_batch()
        for row in rows:
            batch.add(row)
        while batch.busy:
            batch.step()
        return [row.ids for row in rows]

    assert texts(0.01, 1) == texts(0.01, 2)
    assert texts(0.0, 1) != texts(0.0, 2)
