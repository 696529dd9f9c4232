"""What thoughts are good for: the six figures of docs/thoughts.md, each beside what it should be.

    python benchmarks/thoughts.py --minutes 5 --thinking 10

A run is trained on stories (or given with --run), taught twenty answers, and a decoder is trained on its thoughts of
its own corpus. All is measured on spans of the corpus that nothing was trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import homespun as hs
from homespun.data.conversation import encode, render
from homespun.generate.hybrid import mixture
from homespun.generate.sampling import Sampling
from homespun.generate.thought import ThoughtState, thoughts
from homespun.learn.keep import teacher_of
from homespun.learn.lessons import own_material, pair_lesson
from homespun.learn.thoughts import Thinking, draw, learn_thoughts, vectors_of
from homespun.train.log import PlainConsole

TOWNS = "France Paris Japan Tokyo Italy Rome Spain Madrid Peru Lima Norway Oslo Egypt Cairo Cuba Havana Iran Tehran"
SOUNDS = "dog Woof cat Meow cow Moo duck Quack sheep Baa pig Oink lion Roar bee Buzz snake Hiss owl Hoot"
PAIRS = [  # a question, two ways to ask it that are not taught, and the answer
    *(
        (f"What is the capital of {land}?", f"{land} has which capital?", f"Name the capital of {land}.", f"{town}.")
        for land, town in zip(TOWNS.split()[::2], TOWNS.split()[1::2], strict=True)
    ),
    *(
        (f"What does a {who} say?", f"A {who} says what?", f"Tell me what a {who} says.", f"{sound}!")
        for who, sound in zip(SOUNDS.split()[::2], SOUNDS.split()[1::2], strict=True)
    ),
]
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
VERBATIM = 16  # tokens in a row that a text shares with the corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run whose corpus is still there")
    parser.add_argument("--data", default="stories:5000")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--minutes", default="1", help="of the run's training")
    parser.add_argument("--thinking", type=float, default=1.0, help="minutes of the decoder's training")
    parser.add_argument("--spans", type=int, default=128, help="held-out spans that are measured")
    parser.add_argument("--patterns", type=int, default=64)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        quiet = PlainConsole(quiet=True)
        if given.run is None:
            recipe = hs.recipe(given.recipe, f"train.minutes={given.minutes}")
            run = hs.train(given.data, recipe, Path(folder) / "run", console=quiet)
        else:
            run = hs.load(given.run)
        rows = measured(run, given, own_material(run.folder, run.recipe, run.tokenizer, quiet))
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def measured(run: Any, given: argparse.Namespace, material: Any) -> list[dict[str, Any]]:
    """The six figures."""
    taught = teacher_of(run).teach([pair_lesson(question, answer) for question, *_, answer in PAIRS])
    print(f"taught: {taught.known} of {taught.lessons} known, drift {taught.drift:+.1%}", flush=True)
    source = SimpleNamespace(model=run.model, tokenizer=run.tokenizer)
    decoder = hs.LatentDecoder(given.dim, given.patterns, source)
    settings, begin = Thinking(minutes=given.thinking), time.monotonic()
    pairs = [(question, answer) for question, *_, answer in PAIRS]
    loss = learn_thoughts(decoder, source, material, settings, pairs, say=told)
    print(f"decoder: loss {loss:.3f} after {time.monotonic() - begin:.0f} s", flush=True)
    spans = held_out(run, material, given.spans, settings.span)
    found = [*used(run, decoder, spans), *reconstruction(run, decoder, spans, material, settings.span)]
    found += answers(run, decoder, spans)
    found += steering(run, decoder, spans, material)
    return found


def told(step: int, loss: float) -> None:
    if step % 500 == 0:
        print(f"decoder: step {step}, loss {loss:.3f}", flush=True)


def held_out(run: Any, material: Any, count: int, longest: int) -> Any:
    return draw(material.valid, count, longest, run.tokenizer.end, np.random.default_rng(5))


def row(figure: str, value: float, wanted: str, reached: bool, beside: str = "") -> dict[str, Any]:
    return {"figure": figure, "value": value, "wanted": wanted, "reached": bool(reached), "beside": beside}


@torch.no_grad()
def used(run: Any, decoder: Any, spans: Any) -> list[dict[str, Any]]:
    """(1) Whether a span is likelier with its own thought than with another's."""
    targets, vectors = spans.targets(run.tokenizer.end), vectors_of(run.model, spans, decoder.dim)
    count = int((targets >= 0).sum())
    own, other = (
        float(decoder.network.losses(each, spans.tokens, targets).sum()) / count
        for each in (vectors, vectors.roll(1, 0))
    )
    return [row("thought is used, nats per token", other - own, ">= 0.3", other - own >= 0.3, f"own {own:.2f}")]


def reconstruction(run: Any, decoder: Any, spans: Any, material: Any, longest: int) -> list[dict[str, Any]]:
    """(2) The tokens of a span that come back from its thought, beside those of the nearest span of the corpus."""
    vectors = vectors_of(run.model, spans, decoder.dim)
    known = draw(material.train, 4096, longest, run.tokenizer.end, np.random.default_rng(6))
    seen = torch.cat([vectors_of(run.model, part, decoder.dim) for part in parts(known, 256)])
    nearest = (vectors @ seen.T).argmax(1)
    candidates, ours, theirs = lists(known), [], []
    for place, (ids, vector) in enumerate(zip(lists(spans), vectors, strict=True)):
        text, _ = decoder.generate(ThoughtState(vector, decoder.made_by, len(ids)), max_tokens=longest + 8)
        ours.append(overlap(ids, run.tokenizer.encode(text)))
        theirs.append(overlap(ids, candidates[int(nearest[place])]))
    value, base = sum(ours) / len(ours), sum(theirs) / len(theirs)
    return [row("reconstruction, token F1", value, ">= 0.6", value >= 0.6, f"nearest of 4,096 spans {base:.2f}")]


def answers(run: Any, decoder: Any, spans: Any) -> list[dict[str, Any]]:
    """(3) Questions asked in other words, and text that has nothing to do with them."""
    generator = run.generator
    asked = [(other, answer) for _, *others, answer in PAIRS for other in others]
    alone = right(lambda prompt, _: generator.generate(prompt, greedy()), run, decoder, asked)
    scores = {}
    for weight in WEIGHTS[1:]:
        hybrid = hs.Hybrid(generator, decoder, weight)
        scores[weight] = right(lambda prompt, z, h=hybrid: h.generate(prompt, z, greedy())[0], run, decoder, asked)
    best = max(scores.items(), key=lambda each: each[1])
    said = " ".join(f"{weight:g}:{score:.0%}" for weight, score in scores.items())
    gain = 100 * (best[1] - alone)
    found = [
        row(
            "paraphrased questions, points above the model",
            gain,
            "> 5",
            gain > 5,
            f"model {alone:.0%}, by weight {said}",
        )
    ]
    rise = unrelated(run, decoder, spans, best[0])
    found.append(row(f"unrelated perplexity at weight {best[0]:g}", rise, "<= 1.01", rise <= 1.01, "model 1"))
    return found


def greedy() -> Sampling:
    return Sampling(max_tokens=24, temperature=0.0)


def right(write: Any, run: Any, decoder: Any, asked: list[tuple[str, str]]) -> float:
    found = 0
    for (question, answer), z in zip(asked, thoughts([q for q, _ in asked], decoder.dim, run), strict=True):
        prompt = encode(render({"prompt": question, "completion": ""}), run.tokenizer)
        found += write(prompt, z) == answer
    return found / len(asked)


@torch.no_grad()
def unrelated(run: Any, decoder: Any, spans: Any, weight: float) -> float:
    """The perplexity of the second halves of spans, with the thoughts of their first halves, to the model's alone."""
    ours, mixed = [], []
    for ids in lists(spans)[:64]:
        half = len(ids) // 2
        (z,) = thoughts([run.tokenizer.decode(ids[:half]) or " "], decoder.dim, run)
        logits = run.model(torch.tensor([[run.tokenizer.end, *ids]]))[0, 1 + half : -1].float()
        rest = torch.tensor([ids[half:]])
        hidden = decoder.network.hidden(rest[:, :-1], decoder.network.prefix(z.vector[None]))
        latent = decoder.network.decoder.logits(hidden)[0].float()[1:]
        targets = rest[0, 1:, None]
        ours += logits.log_softmax(-1).gather(1, targets).flatten().tolist()
        mixed += mixture(logits, latent, weight).gather(1, targets).flatten().tolist()
    return math.exp((sum(ours) - sum(mixed)) / len(ours))


def steering(run: Any, decoder: Any, spans: Any, material: Any) -> list[dict[str, Any]]:
    """(4) to (6) How near the text comes to a thought, what that costs, and what is only copied."""
    goals = [ids for ids in lists(spans) if len(ids) >= 12][:24]
    wanted = thoughts([run.tokenizer.decode(ids) for ids in goals], decoder.dim, run)
    settings = Sampling(max_tokens=24, temperature=0.7, seed=1)
    near, surprise, speed, copied = [], [], [], []
    grams = ngrams([np.asarray(material.train.tokens).tolist()])
    for weight in WEIGHTS:
        hybrid, begin = hs.Hybrid(run.generator, decoder, weight), time.monotonic()
        texts = [hybrid.generate("", z, settings.model_copy(update={"seed": n}))[0] for n, z in enumerate(wanted)]
        written = [run.tokenizer.encode(text) for text in texts]
        speed.append((time.monotonic() - begin) / max(1, sum(len(ids) + 1 for ids in written)))
        real = [place for place, ids in enumerate(written) if ids]
        made = thoughts([texts[place] for place in real], decoder.dim, run)
        near.append(sum(z.cosine(wanted[place]) for z, place in zip(made, real, strict=True)) / len(real))
        surprise.append(model_surprise(run, [written[place] for place in real]))
        copied.append(share_copied(written, grams))
    begin = time.monotonic()
    alone = [run.generator.generate("", settings.model_copy(update={"seed": n})) for n in range(len(wanted))]
    own_speed = (time.monotonic() - begin) / max(1, sum(len(run.tokenizer.encode(text)) + 1 for text in alone))
    rising = all(a <= b for a, b in zip(near, near[1:], strict=False))
    cost = math.exp(surprise[2] - surprise[0])
    slower = speed[2] / own_speed
    at = " ".join(f"{weight:g}:{value:.3f}" for weight, value in zip(WEIGHTS, near, strict=True))
    return [
        row("steering: cosine to the thought, gain", near[-1] - near[0], "rises with the weight", rising, at),
        row("perplexity of steered text at weight 0.5", cost, "<= 1.2", cost <= 1.2, "model 1"),
        row("time of a token at weight 0.5", slower, "<= 1.5", slower <= 1.5, "model 1"),
        row(
            f"runs of {VERBATIM} tokens copied at weight 0.5", copied[2], "<= the model's", copied[2] <= copied[0],
            f"model {copied[0]:.2f}",
        ),
    ]  # fmt: skip


@torch.no_grad()
def model_surprise(run: Any, written: list[list[int]]) -> float:
    """Nats per token of texts under the model alone."""
    nats, count = 0.0, 0
    for ids in written:
        logits = run.model(torch.tensor([[run.tokenizer.end, *ids[:-1]]]))[0].float().log_softmax(-1)
        nats -= float(logits.gather(1, torch.tensor(ids)[:, None]).sum())
        count += len(ids)
    return nats / max(1, count)


def ngrams(texts: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(ids[at : at + VERBATIM]) for ids in texts for at in range(len(ids) - VERBATIM + 1)}


def share_copied(written: list[list[int]], grams: set[tuple[int, ...]]) -> float:
    runs = [tuple(ids[at : at + VERBATIM]) for ids in written for at in range(len(ids) - VERBATIM + 1)]
    return sum(each in grams for each in runs) / max(1, len(runs))


def parts(spans: Any, size: int) -> list[Any]:
    return [type(spans)(*pair) for pair in zip(spans.tokens.split(size), spans.lengths.split(size), strict=True)]


def lists(spans: Any) -> list[list[int]]:
    return [ids[:length] for ids, length in zip(spans.tokens.tolist(), spans.lengths.tolist(), strict=True)]


def overlap(wanted: list[int], found: list[int]) -> float:
    """F1 of two bags of tokens."""
    common = sum((Counter(wanted) & Counter(found)).values())
    return 2 * common / max(1, len(wanted) + len(found))


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["", "| figure | measured | wanted | reached | beside it |", "|---|---|---|---|---|"]
    for each in rows:
        reached = "yes" if each["reached"] else "no"
        lines.append(f"| {each['figure']} | {each['value']:.3f} | {each['wanted']} | {reached} | {each['beside']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
