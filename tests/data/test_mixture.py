"""Mixtures: the share of each part, a corpus of named parts, and what a run on it is measured by."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from homespun.config import override, parse
from homespun.data.batches import validation_batches
from homespun.data.corpus import Corpus, prepare
from homespun.data.mixture import BLOCK, DataConfig, MixedBatches, quotas
from homespun.data.vocabulary import Bpe, Bytes
from homespun.errors import ConfigError, DataError
from homespun.evaluate.parts import parts as parts_of
from homespun.evaluate.story import Story
from homespun.train.log import read_metrics, validation_text
from homespun.train.recipe import Recipe
from tests.train.house import assert_equal, trainer

CONTEXT = 8
SIZES = {"a": 200, "b": 1001, "c": 57}
STARTS = {"a": 0, "b": 1000, "c": 5000}


def parts() -> dict[str, SimpleNamespace]:
    """Three texts whose tokens tell where they stand."""
    return {name: SimpleNamespace(tokens=STARTS[name] + np.arange(size)) for name, size in SIZES.items()}


def batches(shares: dict[str, float], rows: int = 16, seed: int = 3, rank: int = 0, world: int = 1) -> MixedBatches:
    chosen = {name: part for name, part in parts().items() if name in shares}
    return MixedBatches(chosen, shares, CONTEXT, rows, seed, rank, world)


def sources(tokens: torch.Tensor) -> list[str]:
    return [max((name for name in STARTS if STARTS[name] <= first), key=STARTS.get) for first in tokens[:, 0].tolist()]


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [0.7, 0.2, 0.1], [0.9999, 0.0001], [1 / 3] * 3, [1 / 128] * 128])
def test_quotas_are_the_shares_to_the_nearest_row(shares: list[float]) -> None:
    given = quotas(shares)
    assert given.sum() == BLOCK and given.min() >= 1
    assert all(abs(each - share * BLOCK) < 1 or each == 1 for each, share in zip(given, shares, strict=True))


def test_each_part_has_its_share_of_every_block() -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    mixed = batches(shares)
    wanted = dict(zip(shares, quotas(list(shares.values())).tolist(), strict=True))
    for block in range(2):
        steps = range(block * BLOCK // 16, (block + 1) * BLOCK // 16)
        assert Counter(name for step in steps for name in sources(mixed[step].tokens)) == wanted


def test_a_row_is_text_of_one_part_and_its_target_is_one_place_later() -> None:
    for step in range(20):
        batch = batches({"a": 0.5, "b": 0.3, "c": 0.2})[step]
        for name, tokens, targets in zip(sources(batch.tokens), batch.tokens, batch.targets, strict=True):
            places, size = tokens - STARTS[name], SIZES[name]
            assert torch.equal(places, (places[0] + torch.arange(CONTEXT)) % size)
            assert torch.equal(targets - STARTS[name], (places + 1) % size)


def test_every_window_of_a_part_comes_once_in_an_epoch_of_its_own() -> None:
    """Numbers 0, 1, 2... of a part are each taken once: b has 125 windows and a quota that is a multiple of them."""
    mixed = batches({"a": 1 - 500 / BLOCK, "b": 500 / BLOCK})
    rows = [tuple(row.tolist()) for step in range(BLOCK // 16) for row in mixed[step].tokens if row[0] >= STARTS["b"]]
    assert len(rows) == 500
    shown = Counter(token for row in rows for token in row)
    assert len(shown) == SIZES["b"] and set(shown.values()) <= {3, 4}  # four epochs; each leaves one token out


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batch_of_one_process(world: int) -> None:
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    for step in (0, 7, 100, 12345):
        ranks = [batches(shares, rank=rank, world=world)[step].tokens for rank in range(world)]
        assert torch.equal(torch.cat(ranks), batches(shares)[step].tokens)


def test_a_seed_gives_another_order_and_a_step_no_state() -> None:
    shares = {"a": 0.6, "b": 0.4}
    walked = batches(shares)
    assert torch.equal([walked[step].tokens for step in range(50)][-1], batches(shares)[49].tokens)
    assert not torch.equal(batches(shares, seed=4)[49].tokens, walked[49].tokens)


def test_weights_and_temperature() -> None:
    sizes = {"a": 10_000, "b": 100}
    weighed = parse(DataConfig, {"mixture": {"a": {"source": "x", "weight": 1}, "b": {"source": "y", "weight": 3}}})
    assert weighed.shares(sizes) == {"a": 0.25, "b": 0.75}
    huge = {"mixture": {"a": {"source": "x", "weight": 5e307}, "b": {"source": "y", "weight": 1.5e308}}}
    assert parse(DataConfig, huge).shares(sizes) == pytest.approx({"a": 0.25, "b": 0.75})  # their sum is infinite
    named = {"mixture": {"a": {"source": "x"}, "b": {"source": ["y", "z"]}}}
    assert parse(DataConfig, named).shares(sizes)["b"] == pytest.approx(100 / 10_100)
    assert parse(DataConfig, named | {"temperature": 2}).shares(sizes)["b"] == pytest.approx(10 / 110)
    assert parse(DataConfig, named | {"temperature": 1e9}).shares(sizes)["b"] == pytest.approx(0.5)
    assert parse(DataConfig, named | {"temperature": 0.01}).shares(sizes)["a"] == 1  # no power is too large


def test_what_a_mixture_cannot_be() -> None:
    with pytest.raises(ConfigError, match="Only some parts"):
        parse(DataConfig, {"mixture": {"a": {"source": "x", "weight": 1}, "b": {"source": "y"}}})
    with pytest.raises(ConfigError, match="temperature does nothing"):
        parse(DataConfig, {"mixture": {"a": {"source": "x", "weight": 1}}, "temperature": 2})
    with pytest.raises(ConfigError, match="weight"):
        parse(DataConfig, {"mixture": {"a": {"source": "x", "weight": 0}}})
    with pytest.raises(ConfigError, match=r"name '\\x1b\[31mred'"):  # it would speak to the terminal
        parse(DataConfig, {"mixture": {"\x1b[31mred": {"source": "x"}}})
    with pytest.raises(ConfigError, match=r"data\.mixture\.a\.wieght.*Did you mean 'weight'"):
        override(Recipe(), ["data.mixture.a.source=x", "data.mixture.a.wieght=2"])


def test_a_mixture_can_be_written_key_by_key() -> None:
    keys = ["data.mixture.a.source=x.txt", "data.mixture.b.source=[y, z]"]
    one = override(Recipe(), keys)
    assert one == override(Recipe(), ["data.mixture={a: {source: x.txt}, b: {source: [y, z]}}"])
    assert one.data.groups([]) == {"a": ["x.txt"], "b": ["y", "z"]}
    with pytest.raises(DataError, match=r"beside data\.mixture"):
        one.data.groups(["other.txt"])


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    """Rows of two languages; each tenth row stands in both."""
    rows = {"north": [f"nord {n} nord" for n in range(60)], "south": [f"sud {n} sud sud" for n in range(200)]}
    for n in range(0, 60, 10):
        rows["south"][n] = rows["north"][n]
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return {name: tmp_path / f"{name}.jsonl" for name in rows}


def mixture(texts: dict[str, Path], **weights: float) -> DataConfig:
    named = {name: {"source": str(path)} for name, path in texts.items()}
    for name, weight in weights.items():
        named[name]["weight"] = weight
    return parse(DataConfig, {"mixture": named})


def documents(corpus: Corpus, side: str, name: str) -> list[str]:
    split = corpus.parts(side)[name]
    text = corpus.tokenizer.decode(np.asarray(split.tokens).tolist(), special=True)
    found = text.split("<|endoftext|>")[:-1]
    assert len(found) == split.documents and sum(len(each.encode()) for each in found) == split.bytes
    return found


def test_every_document_is_in_its_part_and_equal_ones_are_on_one_side(texts: dict[str, Path]) -> None:
    corpus = prepare([], Bytes(), mixture(texts))
    for name, path in texts.items():
        lines = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        found = {side: documents(corpus, side, name) for side in ("train", "valid")}
        assert sorted(found["train"] + found["valid"]) == sorted(lines)
        assert found["valid"] and len(found["train"]) > len(found["valid"])
    train, valid = ({each for name in texts for each in documents(corpus, side, name)} for side in ("train", "valid"))
    assert not train & valid
    assert sum(split.count for split in corpus.parts("train").values()) == corpus.train.count


def test_weights_do_not_change_the_corpus(texts: dict[str, Path]) -> None:
    said: list[str] = []
    plain = prepare([], Bytes(), mixture(texts))
    weighed = prepare([], Bytes(), mixture(texts, north=1, south=9), say=said.append)
    assert weighed.key == plain.key and any("used again" in sentence for sentence in said)
    rows = 64
    tokens = weighed.batches(CONTEXT, rows, 0)[0].tokens
    north = set(np.asarray(weighed.parts("train")["north"].tokens).tolist())
    assert north and tokens.shape == (rows, CONTEXT)
    assert not torch.equal(tokens, plain.batches(CONTEXT, rows, 0)[0].tokens)
    assert prepare(list(texts.values()), Bytes(), DataConfig()).key != plain.key


def test_a_manifest_whose_parts_do_not_fit_is_damaged(texts: dict[str, Path]) -> None:
    corpus = prepare([], Bytes(), mixture(texts))
    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    manifest["parts"]["south"]["train"]["start"] += 1
    (corpus.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="contradicts itself"):
        Corpus.open(corpus.folder)


def test_each_part_is_measured_by_itself(texts: dict[str, Path], tmp_path: Path) -> None:
    corpus = prepare([], Bytes(), mixture(texts, north=3, south=1))
    run = trainer(tmp_path / "run", "train.steps=2", text=corpus)
    run.fit()
    row = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation_loss" in row][-1]
    assert set(row["sources"]) == {"north", "south"}
    sums = {}
    for name, split in corpus.parts("valid").items():
        parts = [run.updater.objective(run.model.eval(), batch) for batch in validation_batches(split, 32, 4)]
        sums[name] = (sum(float(part.loss) for part in parts), sum(part.count for part in parts))
        nats, count = sums[name]
        assert row["sources"][name]["loss"] == pytest.approx(nats / count, rel=1e-5)
        assert row["sources"][name]["bits_per_byte"] == pytest.approx(nats / (split.bytes - 1) / np.log(2), rel=1e-5)
    whole = np.sum(list(sums.values()), axis=0)
    assert row["validation_loss"] == pytest.approx(whole[0] / whole[1], rel=1e-5)


def test_a_mixture_resumes_exactly(texts: dict[str, Path], tmp_path: Path) -> None:
    corpus = prepare([], Bytes(), mixture(texts))
    settings = ("optimizer.schedule.kind=constant",)
    once = trainer(tmp_path / "once", "train.steps=6", *settings, text=corpus)
    once.fit()
    trainer(tmp_path / "twice", "train.steps=3", *settings, text=corpus).fit()
    twice = trainer(tmp_path / "twice", "train.steps=6", *settings, text=corpus)
    assert twice.progress.step == 3
    twice.fit()
    assert_equal(once, twice)


def test_a_byte_is_one_of_utf_8_whatever_the_script(tmp_path: Path) -> None:
    """Nothing is lost by a vocabulary learnt mostly from another script, and bytes are counted, not tokens."""
    texts = {"latin": ["all human beings are born free"] * 40, "tamil": ["மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே"]}
    named = {}
    for name, lines in texts.items():
        rows = [json.dumps({"text": f"{n} {line}"}) + "\n" for line in lines for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
        named[name] = {"source": str(tmp_path / f"{name}.jsonl")}
    corpus = prepare([], Bpe(size=300), parse(DataConfig, {"mixture": named, "validation_fraction": 0.3}))
    for side in ("train", "valid"):
        found = documents(corpus, side, "tamil")
        assert found and all(each.endswith(texts["tamil"][0]) for each in found)
    run = trainer(tmp_path / "run", "train.steps=1", "model.vocab=300", text=corpus)
    run.fit()
    row = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "sources" in row][-1]
    split = corpus.parts("valid")["tamil"]
    nats = row["sources"]["tamil"]["loss"] * (split.count - 1)
    first = corpus.tokenizer.token_bytes()[int(split.tokens[0])]
    size = sum(len(each.encode()) for each in documents(corpus, "valid", "tamil")) - first
    assert row["sources"]["tamil"]["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-5)


def test_a_part_too_small_to_be_measured_is_told(texts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("one line of text")
    said: list[str] = []
    named = {"tiny": tmp_path / "tiny.txt", **texts}
    corpus = prepare([], Bytes(), mixture(named), say=said.append)
    assert "Too little text to measure by itself: 'tiny'." in said
    assert corpus.parts("train")["tiny"].count == len("one line of text") + 1
    assert corpus.batches(CONTEXT, 64, 0)[0].tokens.shape == (64, CONTEXT)
    assert {name for name, _ in corpus.validation(CONTEXT, 4)} == set(texts)


def test_a_report_tells_of_every_part_and_draws_a_few(tmp_path: Path) -> None:
    for count in (3, 40):
        rows = [
            {"step": step, "validation_loss": 2.0, "validation_bits_per_byte": 2.0,
             "sources": {f"part{n}": {"loss": 1.0, "bits_per_byte": 1 + n / 100 + 1 / step} for n in range(count)}}
            for step in (1, 10)
        ]  # fmt: skip
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        page = str(parts_of(Story.read(tmp_path)))
        assert all(f"<td>part{n}</td>" in page or f">part{n}<" in page for n in range(count))
        assert len(set(re.findall(r'<path[^>]*class="[^"]*\bs(\d)', page))) == min(count, 8)
        assert ("8 of 40, from the cheapest" in page) == (count == 40)


def test_many_parts_fit_on_a_line() -> None:
    def line(bits: list[float]) -> str:
        sources = {f"l{n}": {"loss": 1.0, "bits_per_byte": value} for n, value in enumerate(bits)}
        return validation_text({"step": 1, "validation_loss": 1.0, "sources": sources})

    assert line([2.0, 1.0, float("nan")]).endswith("loss 1.000, l0 2.000, l1 1.000")
    assert line([3.0, *[2.0] * 40, 1.0]).endswith("loss 1.000, 42 parts from 1.000 (l41) to 3.000 (l0)")
