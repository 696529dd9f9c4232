"""The draw follows the distribution, and each control does what it says."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from homespun.config import parse
from homespun.errors import ConfigError
from homespun.generate.sampling import Sampling, draws, keep_top_k, keep_top_p, penalize, sample, shape

PLAIN = Sampling(temperature=1.0)


def numbers(count: int, seed: int = 0) -> Tensor:
    return draws(np.full(count, seed, dtype=np.uint64), np.arange(count, dtype=np.uint64))


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def kept(logits: Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


def chi_squared_probability(observed: Tensor, expected: Tensor) -> float:
    """How likely a statistic as large is, if the counts follow the expectation; rare outcomes are pooled."""
    rare = expected < 5
    pool = lambda x: torch.cat((x[~rare].double(), x[rare].double().sum()[None])) if rare.any() else x.double()  # noqa: E731
    observed, expected = pool(observed), pool(expected)
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2))


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2}, {"typical_p": 0.7}]
)
def test_frequencies_follow_softmax(settings: dict) -> None:
    count, logits = 40_000, torch.randn(1, 40) * 1.5
    sampling = Sampling(**{"temperature": 1.0} | settings)
    ids = sample(logits.expand(count, -1), sampling, numbers(count, seed=7))
    observed = ids.bincount(minlength=40)
    expected = shape(logits, sampling)[0].softmax(-1) * count
    assert not observed[expected == 0].any()
    possible = expected > 0
    assert chi_squared_probability(observed[possible], expected[possible]) > 0.001


def test_frequencies_follow_softmax_in_a_large_vocabulary() -> None:
    logits, count = torch.randn(1, 50_257) * 4, 1000
    parts = [sample(logits.expand(250, -1), PLAIN, part) for part in numbers(count, seed=3).split(250)]
    observed, expected = torch.cat(parts).bincount(minlength=50_257), logits[0].softmax(-1) * count
    assert chi_squared_probability(observed, expected) > 0.001


def test_the_check_of_frequencies_can_fail() -> None:
    expected = torch.tensor([0.5, 0.3, 0.2]) * 10_000
    assert chi_squared_probability(torch.tensor([5300, 2900, 1800]), expected) < 0.001


def test_neighbouring_seeds_draw_independently() -> None:
    seeds = np.arange(40_000, dtype=np.uint64)
    table = [draws(seeds, np.full_like(seeds, place)) for place in (0, 1, 2**40)]
    for column in table:
        counts = (column * 64).long().bincount(minlength=64)
        assert chi_squared_probability(counts, torch.full((64,), 40_000 / 64)) > 0.001
    pairs = ((table[0] * 16).long() * 16 + (table[1] * 16).long()).bincount(minlength=256)
    assert chi_squared_probability(pairs, torch.full((256,), 40_000 / 256)) > 0.001
    lagged = torch.corrcoef(torch.stack((table[0][1:], table[0][:-1])))[0, 1]
    assert abs(lagged) < 0.02


def test_a_draw_is_a_pure_function_of_seed_and_place() -> None:
    seeds, places = np.array([5, 2**63 - 1], dtype=np.uint64), np.array([0, 2**60], dtype=np.uint64)
    first = draws(seeds, places)
    assert torch.equal(first, draws(seeds, places)) and ((first >= 0) & (first < 1)).all()
    assert torch.equal(first[1:], draws(seeds[1:], places[1:]))


def test_a_row_draws_the_same_alone_and_in_company() -> None:
    logits, chance = torch.randn(9, 300), numbers(9)
    sampling = Sampling(temperature=0.9, top_p=0.8, min_p=0.01)
    together = sample(logits, sampling, chance)
    alone = [sample(logits[i : i + 1], sampling, chance[i : i + 1]).item() for i in range(9)]
    assert together.tolist() == alone


def test_the_largest_number_draws_a_possible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf, -math.inf]])
    assert sample(logits, PLAIN, torch.tensor([1 - 2.0**-53], dtype=torch.float64)).item() == 1
    assert sample(logits.flip(1), PLAIN, torch.tensor([0.0], dtype=torch.float64)).item() == 2


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    assert sample(logits, Sampling(temperature=0), numbers(2)).tolist() == [1, 0]


def test_top_k_of_one_is_greedy_also_among_equals() -> None:
    logits = torch.randn(200, 50).to(torch.bfloat16).float().round()  # full of equals
    assert torch.equal(sample(logits, Sampling(top_k=1), numbers(200)), logits.argmax(-1))


def test_top_k_keeps_exactly_k() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0, 3.0, 3.0, 0.0]])
    assert kept(keep_top_k(logits, 1)) == [1]
    assert kept(keep_top_k(logits, 3)) == [1, 2, 3]
    assert kept(shape(logits, Sampling(top_k=1000))) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-9, [1]),
        (0.49, [1]),
        (0.51, [1, 2]),
        (0.74, [1, 2]),
        (0.76, [0, 1, 2]),
        (0.88, [0, 1, 2, 3]),
        (1, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    logits = logits_of(0.125, 0.5, 0.25, 0.125)  # of the equals 0 and 3, the lower id comes first
    assert kept(shape(logits, Sampling(temperature=1, top_p=p))) == expected
    assert kept(keep_top_p(logits, p)) == expected


def test_top_p_finds_a_nucleus_of_any_size() -> None:
    flat = torch.zeros(2, 1000)
    flat[1, 10] = 20.0  # a sharp row beside a flat one
    result = keep_top_p(flat, 0.4995)  # between 499 and 500 of the thousand
    assert result[0].isfinite().sum() == 500 and kept(result[1:]) == [10]


def test_top_p_equals_sorting_and_adding_up() -> None:
    for spread in (0.1, 1.0, 5.0):
        logits = torch.randn(20, 700) * spread
        for p in (0.05, 0.5, 0.9, 0.999):
            ordered, ids = logits.double().softmax(-1).sort(descending=True)
            inside = torch.zeros_like(ordered, dtype=torch.bool).scatter(1, ids, ordered.cumsum(-1) - ordered < p)
            assert ((keep_top_p(logits, p).isfinite() != inside).sum(-1) <= 1).all()  # rounding at the border


def test_min_p_is_relative_to_the_most_likely_token() -> None:
    logits = logits_of(0.6, 0.31, 0.07, 0.02)
    assert kept(shape(logits, Sampling(temperature=1, min_p=0.5))) == [0, 1]
    assert kept(shape(logits, Sampling(temperature=1, min_p=0.1))) == [0, 1, 2]
    assert kept(shape(logits, Sampling(temperature=1, min_p=1.0))) == [0]
    assert kept(shape(logits, Sampling(temperature=1, min_p=0.0))) == [0, 1, 2, 3]


def test_the_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    shaped = shape(logits, Sampling(temperature=1, repetition_penalty=2.0), seen)
    assert torch.equal(shaped, torch.tensor([[1.0, -4.0, 2.0, -2.0]]) - 2.0)
    greedy = Sampling(temperature=0, repetition_penalty=1.5)
    assert sample(logits, greedy, numbers(1), seen).item() == 2


def test_the_controls_act_in_the_documented_order() -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(shape(logits, Sampling(temperature=0.1, top_p=0.6))) == [0]  # temperature before top-p
    assert kept(shape(logits, Sampling(temperature=1, top_k=2, top_p=0.55))) == [0]  # top-k first: 4/7 > 0.55
    seen = torch.tensor([[True, False, False, False]])
    penalized = shape(logits - logits.max() + 1, Sampling(temperature=1, repetition_penalty=50.0, top_k=1), seen)
    assert kept(penalized) == [1]  # penalty before top-k


def test_at_least_one_token_stays() -> None:
    extreme = torch.tensor([[3e38, -3e38, 0.0, -math.inf], [-1e30] * 4, [0.0] * 4])
    strict = Sampling(temperature=1e-30, top_k=1, top_p=1e-9, min_p=1.0, repetition_penalty=100.0)
    for sampling in (strict, PLAIN, Sampling(temperature=100)):
        shaped = shape(extreme / 200, sampling, torch.ones(3, 4, dtype=torch.bool))
        assert shaped.isfinite().any(-1).all() and not shaped.isnan().any()


def test_the_coldest_temperature_takes_the_likeliest() -> None:
    logits = torch.randn(4, 30)
    for temperature in (1e-20, 1e-50, 5e-324):
        assert torch.equal(sample(logits, Sampling(temperature=temperature), numbers(4)), logits.argmax(-1))


def test_a_higher_temperature_flattens() -> None:
    logits = torch.randn(1, 30)
    cool, warm = (shape(logits, Sampling(temperature=t)).softmax(-1).amax() for t in (0.5, 2.0))
    assert cool > warm


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1}, {"temperature": "hot"}, {"temperature": math.inf}, {"top_k": 0}, {"top_p": 0},
        {"top_p": 1.1}, {"min_p": -1}, {"min_p": 2}, {"repetition_penalty": 0}, {"max_tokens": 0}, {"stop": [""]},
        {"stop": "x"}, {"seed": -1}, {"seed": 2**63}, {"typical_p": 0}, {"frequency_penalty": 2.1},
        {"presence_penalty": -2.1}, {"logit_bias": {"-1": 1.0}}, {"logit_bias": {"1": 101.0}}, {"beams": 0},
    ],
)  # fmt: skip
def test_impossible_settings_are_errors_that_name_the_key(settings: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        parse(Sampling, settings)


def test_a_misspelt_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        parse(Sampling, {"temprature": 1.0})


def test_settings_may_be_written_as_people_write_them() -> None:
    sampling = parse(Sampling, {"max_tokens": "1k", "temperature": 1, "stop": ["a", "b"]})
    assert (sampling.max_tokens, sampling.temperature, sampling.stop) == (1000, 1.0, ["a", "b"])


def test_typical_keeps_the_tokens_whose_surprise_is_nearest_to_the_expected() -> None:
    logits = logits_of(0.5, 0.25, 0.125, 0.0625, 0.0625)  # entropy 1.875 bits: surprises 1, 2, 3, 4, 4
    assert kept(shape(logits, Sampling(temperature=1, typical_p=0.2))) == [1]
    assert kept(shape(logits, Sampling(temperature=1, typical_p=0.3))) == [0, 1]
    assert kept(shape(logits, Sampling(temperature=1, typical_p=0.8))) == [0, 1, 2]
    assert kept(shape(logits, Sampling(temperature=1, typical_p=0.9))) == [0, 1, 2, 3]  # of equals the lower id
    assert kept(shape(logits, Sampling(temperature=1, typical_p=1.0))) == [0, 1, 2, 3, 4]
    assert kept(shape(logits, Sampling(temperature=1, top_k=1, typical_p=0.01))) == [0]  # not what top-k has left out


def test_frequency_and_presence_penalties_count_what_was_written() -> None:
    logits, counts = torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[0.0, 1.0, 3.0, 0.0]])
    both = Sampling(temperature=1, frequency_penalty=0.5, presence_penalty=0.25)
    expected = torch.tensor([[1.0, 0.25, -0.75, 1.0]])
    assert torch.equal(shape(logits, both, None, counts), expected - 1.0)
    assert torch.equal(penalize(logits, both, None, counts), expected)


def test_the_bias_is_added_to_the_logits_of_its_ids() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    biased = Sampling(temperature=0, logit_bias={2: -100.0, 1: 0.5})
    assert torch.equal(penalize(logits, biased, None, None), torch.tensor([[1.0, 2.5, -97.0], [3.0, 2.5, -99.0]]))
    assert sample(logits, biased, None).tolist() == [1, 0]
