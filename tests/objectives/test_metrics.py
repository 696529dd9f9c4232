import math

import pytest

from homespun.objectives.metrics import bits_per_byte, perplexity


def test_guessing_bytes_blindly_costs_eight_bits_per_byte() -> None:
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0)


def test_bits_per_byte_does_not_depend_on_how_the_text_is_cut_into_tokens() -> None:
    by_bytes = bits_per_byte(sum([math.log(16)] * 60), 60)
    by_triples = bits_per_byte(sum([math.log(16**3)] * 20), 60)
    assert by_bytes == pytest.approx(by_triples) == pytest.approx(4.0)


def test_perplexity_of_equal_chances_is_their_number() -> None:
    assert perplexity(50 * math.log(37), 50) == pytest.approx(37.0)


def test_without_text_there_is_no_number_and_a_hopeless_model_is_infinitely_perplexed() -> None:
    assert math.isnan(bits_per_byte(0.0, 0)) and math.isnan(perplexity(0.0, 0))
    assert math.isnan(perplexity(math.nan, 3))
    assert perplexity(1e6, 1) == math.inf
