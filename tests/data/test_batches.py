"""Batches: pure in (seed, step), exact for every number of ranks, every target once an epoch."""

import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homespun.data.batches import IGNORED, Batches, keys_of, permute, validation_batches
from homespun.errors import ConfigError, DataError


@dataclass
class Split:
    tokens: np.ndarray


def counting(size: int) -> Split:
    return Split(np.arange(size, dtype=np.uint16))


@given(size=st.integers(1, 300), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_order_of_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    keys = keys_of(seed, np.full(size, epoch))[1:]
    assert sorted(permute(np.arange(size), size, keys)) == list(range(size))


def test_permutations_look_random_and_differ_by_epoch_and_seed() -> None:
    size = 1000
    orders = [permute(np.arange(size), size, keys_of(s, np.full(size, e))[1:]) for s in range(8) for e in range(8)]
    assert len({order.tobytes() for order in orders}) == 64
    for order in orders:
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.15  # 4.7 standard deviations
        assert np.mean(np.diff(order) == 1) < 0.02  # neighbours do not stay neighbours
    places = np.array([order[0] for order in orders])
    assert len(set(places)) > 55


@given(
    size=st.integers(2, 400),
    context=st.integers(1, 40),
    rows=st.integers(1, 7),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_shows_each_target_at_most_once_and_misses_less_than_a_window(
    size: int, context: int, rows: int, seed: int, epoch: int
) -> None:
    one = Batches(counting(size), context, 1, seed)
    shown = torch.cat([one[step].targets.flatten() for step in range(epoch * one.windows, (epoch + 1) * one.windows)])
    shown = shown[shown != IGNORED]
    assert len(set(shown.tolist())) == len(shown)
    assert len(shown) > (size - context if size > context else size - 2)
    several = Batches(counting(size), context, rows, seed)
    flat = torch.cat([one[step].tokens for step in range(rows * 2)])
    assert torch.equal(
        flat, torch.cat([several[0].tokens, several[1].tokens])
    )  # epochs do not care about batch borders


def test_targets_are_the_tokens_one_place_later_on_the_ring() -> None:
    batches = Batches(counting(101), 8, 4, seed=3)
    for step in range(20):
        batch = batches[step]
        assert torch.equal(batch.targets, (batch.tokens + 1) % 101)


@pytest.mark.parametrize("world", [2, 3, 4, 6, 12])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(world: int) -> None:
    whole = Batches(counting(1000), 16, 12, seed=5)
    ranks = [Batches(counting(1000), 16, 12, seed=5, rank=rank, world=world) for rank in range(world)]
    for step in (0, 1, 7, 100):
        assert torch.equal(torch.cat([rank[step].tokens for rank in ranks]), whole[step].tokens)
        assert torch.equal(torch.cat([rank[step].targets for rank in ranks]), whole[step].targets)


def test_a_batch_depends_on_seed_and_step_only_not_on_history_or_process() -> None:
    first = Batches(counting(5000), 32, 8, seed=1)
    walked = [first[step].tokens for step in range(50)][-1]
    assert torch.equal(Batches(counting(5000), 32, 8, seed=1)[49].tokens, walked)
    assert not torch.equal(Batches(counting(5000), 32, 8, seed=2)[49].tokens, walked)
    code = (
        "import numpy as np, types; from homespun.data.batches import Batches;"
        "split = types.SimpleNamespace(tokens=np.arange(5000, dtype=np.uint32));"
        "print(Batches(split, 32, 8, seed=1)[49].tokens.sum().item())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(answer) == walked.sum().item()


def test_the_order_is_pinned_so_that_old_runs_resume() -> None:
    batches = Batches(counting(1000), 10, 4, seed=0)
    assert batches[0].tokens[:, 0].tolist() == PINNED_FIRST
    assert batches[123].tokens[:, 0].tolist() == PINNED_LATER


PINNED_FIRST = [369, 649, 769, 59]
PINNED_LATER = [181, 11, 591, 171]


def test_the_starting_point_varies_with_the_epoch() -> None:
    batches = Batches(counting(1000), 10, 100, seed=0)
    phases = {int(batches[epoch].tokens[0, 0]) % 10 for epoch in range(30)}
    assert len(phases) > 5


@pytest.mark.parametrize("size", [2, 5, 8])
def test_a_split_shorter_than_a_window_is_one_padded_row(size: int) -> None:
    batches = Batches(counting(size), 8, 3, seed=0)
    assert batches.steps_per_epoch == 1 / 3 and batches.windows == 1
    batch = batches[4]
    assert batch.tokens.shape == batch.targets.shape == (3, 8)
    for row, target in zip(batch.tokens, batch.targets, strict=True):
        assert row[: size - 1].tolist() == list(range(size - 1))
        assert target.tolist() == list(range(1, size)) + [IGNORED] * (8 - size + 1)


def test_epochs_and_steps_count_windows() -> None:
    batches = Batches(counting(1001), 10, 8, seed=0)
    assert batches.windows == 100
    assert batches.steps_per_epoch == 12.5


def test_impossible_batches_are_refused_with_advice() -> None:
    with pytest.raises(ConfigError, match="10 rows does not divide among 4"):
        Batches(counting(100), 8, 10, seed=0, world=4)
    with pytest.raises(DataError, match="only 1 token"):
        Batches(counting(1), 8, 1, seed=0)
    with pytest.raises(IndexError):
        Batches(counting(100), 8, 1, seed=0)[-1]


@given(size=st.integers(0, 200), context=st.integers(1, 30), rows=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_validation_shows_every_target_exactly_once_in_order(size: int, context: int, rows: int) -> None:
    batches = list(validation_batches(counting(size), context, rows))
    targets = [t for batch in batches for t in batch.targets.flatten().tolist() if t != IGNORED]
    assert targets == list(range(1, size))
    for batch in batches:
        valid = batch.targets != IGNORED
        assert torch.equal(batch.targets[valid], batch.tokens[valid] + 1)


def test_a_limited_validation_is_spread_over_the_split() -> None:
    batches = list(validation_batches(counting(10_000), 10, 4, limit=100))
    starts = torch.cat([batch.tokens[:, 0] for batch in batches])
    assert len(starts) == 10 and starts[0] == 0 and starts[-1] > 8500
    assert sum(int((batch.targets != IGNORED).sum()) for batch in batches) == 100
    assert len(list(validation_batches(counting(100), 10, 4, limit=10**9))) == 3


def test_the_time_of_a_batch_does_not_grow_with_the_corpus() -> None:
    def seconds(size: int) -> float:
        batches = Batches(Split(np.zeros(size, dtype=np.uint16)), 256, 32, seed=0)
        batches[0]
        best = float("inf")
        for repeat in range(5):
            start = time.perf_counter()
            for step in range(20):
                batches[1000 * repeat + step]
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(20_000_000) < 10 * seconds(20_000)
