"""What `bench` measures is positive, in proportion, and what the cost model says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import homespun as hs
from homespun.benchmark import bench as room
from homespun.benchmark.bench import Bench
from homespun.benchmark.ceilings import product_shapes
from homespun.benchmark.decoding import numbered
from homespun.benchmark.where import KINDS
from homespun.errors import ConfigError
from homespun.model.cost import cost
from homespun.train.precision import ceiling

SMALL = ("model.layers=1", "model.context=32", "model.vocab=320", "train.batch_tokens=128", "train.precision=fp32",
         "train.compile=off")  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Bench:
    return hs.bench(hs.recipe("house-tiny", "model.width=64", *SMALL), seconds=0.01)


def test_a_product_is_as_fast_as_was_reported(small: Bench) -> None:
    found = small.ceilings
    assert min(found.copy_bytes_per_second, found.row_bytes_per_second, found.model_row_bytes_per_second) > 0
    rates = [product.flops_per_second for product in found.products]
    assert 0 < min(rates) <= found.flops_per_second * 1.001 and found.flops_per_second <= max(rates) * 1.001
    first = found.products[0]
    linear = nn.Linear(first.inputs, first.outputs, bias=False)
    again = max(ceiling(linear, found.rows, torch.float32, torch.device("cpu")) for _ in range(20))
    assert again > first.flops_per_second / 2


def test_every_matrix_is_counted_once() -> None:
    model = hs.Decoder(hs.recipe("house-tiny", "model.width=64", *SMALL, "model.feed_forward.kind=swiglu").model)
    numbers = sum(rows * columns * count for (rows, columns), count in product_shapes(model).items())
    tables = sum(p.numel() for n, p in model.named_parameters() if "embed" in n and p is not model.head_weight)
    assert numbers == sum(p.numel() for p in model.parameters() if p.dim() == 2) - tables


def test_training_is_told_by_the_cost_model(small: Bench) -> None:
    trained = small.training
    assert trained is not None
    low, middle, high = trained.step_seconds
    assert 0 < low <= middle <= high and trained.steps >= 3
    assert trained.tokens == 128 and trained.precision == "fp32" and not trained.compiled
    model = hs.recipe("house-tiny", "model.width=64", *SMALL).model
    assert trained.flops_per_token == cost(model).training_flops
    assert trained.flops_per_second == pytest.approx(trained.tokens_per_second * trained.flops_per_token)
    assert trained.share == pytest.approx(trained.flops_per_second / small.ceilings.flops_per_second)
    assert all(trained.where[kind] > 0 for kind in ("products", "elementwise", "optimizer", "data"))


def test_decoding_reads_the_weights_and_every_row_its_cache(small: Bench) -> None:
    one, several = small.decoding
    assert (one.batch, one.prompt) == (1, 16) and 16 < one.cached <= 32
    model = hs.Decoder(hs.recipe("house-tiny", "model.width=64", *SMALL).model)
    read = [p for name, p in model.named_parameters() if "embed" not in name or p is model.head_weight]
    assert one.weight_bytes == several.weight_bytes == sum(p.nbytes for p in read)
    per_token = cost(model.config).cache_per_token
    assert one.cache_bytes == one.cached * per_token
    assert several.cache_bytes == several.batch * several.cached * per_token
    for each in small.decoding:
        assert each.tokens_per_second == pytest.approx(each.batch / each.step_seconds[1])
        assert each.bytes_per_second == pytest.approx((each.weight_bytes + each.cache_bytes) / each.step_seconds[1])
        assert each.share == pytest.approx(each.bytes_per_second / small.ceilings.row_bytes_per_second)
        assert each.where["optimizer"] == each.where["data"] == 0


def test_shares_of_the_time_are_a_whole(small: Bench) -> None:
    assert small.training is not None
    for where in (small.training.where, *(each.where for each in small.decoding)):
        assert tuple(where) == KINDS and sum(where.values()) == pytest.approx(1)


def test_products_dominate_a_wide_model() -> None:
    wide = hs.recipe("gpt2-nano", "model.width=768", "model.attention.heads=12", *SMALL)
    trained = hs.bench(wide, ["train"], seconds=0.01).training
    assert trained is not None
    assert trained.where["products"] == max(trained.where[kind] for kind in KINDS if kind != "optimizer")


def test_only_what_was_asked_is_measured() -> None:
    told: list[str] = []
    found = hs.bench(hs.recipe("house-tiny", "model.width=64", *SMALL), ["ceiling"], seconds=0.01, say=told.append)
    assert found.training is None and found.decoding == () and len(told) == 1


def test_experts_rest_at_one_row_and_not_in_a_batch() -> None:
    mixture = hs.recipe("house-tiny", "model.width=64", *SMALL, "model.feed_forward.kind=experts")
    one, several = hs.bench(mixture, ["decode"], seconds=0.01).decoding
    costs = cost(mixture.model)
    assert several.weight_bytes - one.weight_bytes == 4 * (costs.parameters - costs.active) > 0


def test_company_is_noticed(small: Bench) -> None:
    quiet = dataclasses.replace(small, load=0.9, machine_cores=2)
    assert not quiet.busy and not dataclasses.replace(quiet, load=None).busy
    assert dataclasses.replace(quiet, load=1.1).busy


def test_a_model_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = hs.plan(hs.recipe("house-tiny"), measure=False)
    monkeypatch.setattr(room, "plan", lambda recipe, measure: dataclasses.replace(planned, fits=False))
    with pytest.raises(ConfigError, match="does not fit"):
        hs.bench("house-tiny")


@pytest.mark.parametrize("size", [2, 65, 50_257])
def test_a_stand_in_tokenizer_has_the_size_of_the_model(size: int) -> None:
    tokenizer = numbered(size)
    assert tokenizer.vocab_size == size and tokenizer.end == size - 1
    assert (tokenizer.token_bytes()[:-1] > 0).all()
