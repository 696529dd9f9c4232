"""What thoughts are good for: the six figures of docs/thoughts.md, each beside what it should be.

    python benchmarks/thoughts.py --steps 300 --thinking 800

A run is trained on stories (or given with --run), taught twenty answers, and a decoder is trained on its thoughts of
its own corpus. All is measured on spans of the corpus that nothing was trained on. Weights are fitted on the first way
to ask a question in other words and on other held-out spans, and measured on the second way.
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
from homespun.generate.hybrid import Following, mixture
from homespun.generate.sampling import Sampling
from homespun.generate.thought import ThoughtState, thoughts
from homespun.learn.keep import teacher_of
from homespun.learn.lessons import own_material, pair_lesson
from homespun.learn.thoughts import Thinking, draw, learn_thoughts, vectors_of
from homespun.train.log import PlainConsole

TOWNS = "France Paris Japan Tokyo Italy Rome Spain Madrid Peru Lima Norway Oslo Egypt Cairo Cuba Havana Iran Tehran"
TOWNS += " India Delhi"
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
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
VERBATIM = 16  # tokens in a row that a text shares with the corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run whose corpus is still there")
    parser.add_argument("--data", default="stories:5000")
    parser.add_argument("--recipe", default="house-tiny")
    parser.add_argument("--steps", default="300", help="of the run's training, 2,048 tokens each")
    parser.add_argument("--thinking", type=int, default=800, help="steps of the decoder's training")
    parser.add_argument("--spans", type=int, default=128, help="held-out spans that are measured")
    parser.add_argument("--patterns", type=int, default=64)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        quiet = PlainConsole(quiet=True)
        if given.run is None:
            length = ("train.batch_tokens=2048", f"train.steps={given.steps}", "train.minutes=600")
            recipe = hs.recipe(given.recipe, *length)
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
    settings, begin = Thinking(steps=given.thinking, minutes=600), time.process_time()
    pairs = [(question, answer) for question, *_, answer in PAIRS]
    loss = learn_thoughts(decoder, source, material, settings, pairs, say=told)
    print(f"decoder: loss {loss:.3f} after {time.process_time() - begin:.0f} s of the processor", flush=True)
    spans, others = (held_out(run, material, given.spans, settings.span, seed) for seed in (5, 6))
    found = [*used(run, decoder, spans), *reconstruction(run, decoder, spans, material, settings.span)]
    found += confidence(run, decoder, others)
    found += answers(run, decoder, spans, others)
    found += steering(run, decoder, spans, material)
    return found


def told(step: int, loss: float) -> None:
    if step % 500 == 0:
        print(f"decoder: step {step}, loss {loss:.3f}", flush=True)


def held_out(run: Any, material: Any, count: int, longest: int, seed: int) -> Any:
    return draw(material.valid, count, longest, run.tokenizer.end, np.random.default_rng(seed))


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


def confidence(run: Any, decoder: Any, spans: Any) -> list[dict[str, Any]]:
    """Whether being sure is being right: fitted on half of the spans, measured on the others."""
    texts = [run.tokenizer.decode(ids) for ids in lists(spans)]
    before, after = decoder.calibrate(list(zip(texts, thoughts(texts, decoder.dim, run), strict=True)))
    return [row("error of the confidence, calibrated (ECE)", after, "<= 0.1", after <= 0.1, f"plain {before:.2f}")]


def answers(run: Any, decoder: Any, spans: Any, others: Any) -> list[dict[str, Any]]:
    """(3) Questions asked in other words, and text that has nothing to do with them."""
    fitting, asked = ([(each[way], each[-1]) for each in PAIRS] for way in (1, 2))
    hybrid = hs.Hybrid(run.generator, decoder)
    alone = right(lambda prompt, _: run.generator.generate(prompt, greedy()), run, decoder, asked)
    texts = [*halves(run, decoder, others)[:16]]
    texts += [
        (prompt_of(run, question), answer, z)
        for (question, answer), z in zip(fitting, thoughts([q for q, _ in fitting], decoder.dim, run), strict=True)
    ]
    found = []
    for name, gated in (("a fitted gate", True), ("a fitted weight", False)):
        chosen = hybrid.fit([(text, z) for _, text, z in texts], [prompt for prompt, _, _ in texts], gated)
        score = right(lambda prompt, z: hybrid.generate(prompt, z, greedy())[0], run, decoder, asked)
        rise = unrelated(run, hybrid, halves(run, decoder, spans)[:48])
        gain, said = 100 * (score - alone), f"model {alone:.0%}, both {score:.0%}"
        found.append(row(f"paraphrased questions, points above the model, {name}", gain, ">= 5", gain >= 5, said))
        found.append(row(f"unrelated perplexity, {name}", rise, "<= 1.01", rise <= 1.01, f"{chosen}"))
    return found


def prompt_of(run: Any, question: str) -> list[int]:
    return encode(render({"prompt": question, "completion": ""}), run.tokenizer)


def halves(run: Any, decoder: Any, spans: Any) -> list[tuple[list[int], str, ThoughtState]]:
    """The first half of each span as a prompt and as a thought, and the second half as the text behind it."""
    found = []
    for ids in lists(spans):
        first, rest = (run.tokenizer.decode(part) for part in (ids[: len(ids) // 2], ids[len(ids) // 2 :]))
        if first.strip() and rest.strip():
            start = [run.tokenizer.end, *run.tokenizer.encode(first)]
            found.append((start, rest, ThoughtState.from_input(first, decoder.dim, run)))
    return found


def greedy() -> Sampling:
    return Sampling(max_tokens=24, temperature=0.0)


def right(write: Any, run: Any, decoder: Any, asked: list[tuple[str, str]]) -> float:
    found = 0
    for (question, answer), z in zip(asked, thoughts([q for q, _ in asked], decoder.dim, run), strict=True):
        found += write(prompt_of(run, question), z) == answer
    return found / len(asked)


@torch.no_grad()
def unrelated(run: Any, hybrid: Any, texts: list[tuple[list[int], str, ThoughtState]]) -> float:
    """The perplexity of texts, with thoughts of what stands before them, to the model's alone."""
    ours, mixed = [], []
    for prompt, text, z in texts:
        following, ids = Following(hybrid, z), run.tokenizer.encode(text)
        for place, token in enumerate(ids):
            model, latent = following.both([*prompt, *ids[:place]], len(prompt))
            ours.append(float(model.log_softmax(-1)[token]))
            mixed.append(float(mixture(model, latent, hybrid.weight)[token]))
    return math.exp((sum(ours) - sum(mixed)) / len(ours))


def steering(run: Any, decoder: Any, spans: Any, material: Any) -> list[dict[str, Any]]:
    """(4) to (6) How near the text comes to a thought, what that costs, and what is only copied."""
    goals = [ids for ids in lists(spans) if len(ids) >= 12][:24]
    wanted = thoughts([run.tokenizer.decode(ids) for ids in goals], decoder.dim, run)
    grams = ngrams([np.asarray(material.train.tokens).tolist()])
    found: list[dict[str, Any]] = []
    for mode in ("mixture", "product"):
        tries = [steered(run, hs.Hybrid(run.generator, decoder, weight, mode), wanted, grams) for weight in WEIGHTS]
        near = [each["near"] for each in tries]
        costs = [math.exp(each["surprise"] - tries[0]["surprise"]) for each in tries]
        rising = all(a < b for a, b in zip(near, near[1:], strict=False))
        found.append(
            row(
                f"steering by {mode}: gain in cosine",
                near[-1] - near[0],
                "rises with the weight",
                rising,
                told_by(near),
            )
        )
        best = max(place for place, cost in enumerate(costs) if cost <= 1.2)
        gain = near[best] - near[0]
        name = f"gain in cosine by {mode} of weight {WEIGHTS[best]:g}, where perplexity is <= 1.2"
        found.append(row(name, gain, "> 0", gain > 0, f"perplexity {told_by(costs)}"))
        half, none = (tries[WEIGHTS.index(weight)]["copied"] for weight in (0.5, 0.0))
        name = f"runs of {VERBATIM} tokens copied, {mode} of weight 0.5"
        found.append(row(name, half, "<= the model's", half <= none, f"model {none:.2f}"))
    return [*found, *speed(run, hs.Hybrid(run.generator, decoder, 0.5), wanted)]


def told_by(values: list[float]) -> str:
    return " ".join(f"{weight:g}:{value:.2f}" for weight, value in zip(WEIGHTS, values, strict=True))


def steered(run: Any, hybrid: Any, wanted: list[ThoughtState], grams: set[tuple[int, ...]]) -> dict[str, float]:
    """What is written towards thoughts: its nearness, the model's surprise, and the share of it that is copied."""
    texts = [hybrid.generate("", z, max_tokens=24, temperature=0.7, seed=n)[0] for n, z in enumerate(wanted)]
    written = [run.tokenizer.encode(text) for text in texts]
    real = [place for place, ids in enumerate(written) if ids]
    made = thoughts([texts[place] for place in real], hybrid.decoder.dim, run)
    near = sum(z.cosine(wanted[place]) for z, place in zip(made, real, strict=True)) / len(real)
    surprise = model_surprise(run, [written[place] for place in real])
    return {"near": near, "surprise": surprise, "copied": share_copied(written, grams)}


def speed(run: Any, hybrid: Any, wanted: list[ThoughtState]) -> list[dict[str, Any]]:
    """The processor's time for 24 tokens, of both and of the model alone, in turns."""
    settings, times = Sampling(max_tokens=24, temperature=0.7, logit_bias={run.tokenizer.end: -100}), [[], []]
    for number, z in enumerate([wanted[0], *wanted]):
        seeded = settings.model_copy(update={"seed": number})
        for place, write in enumerate(
            (lambda z=z, s=seeded: hybrid.generate("", z, s), lambda s=seeded: alone(run, s))
        ):
            begin = time.process_time()
            write()
            times[place].append(time.process_time() - begin)
    both, one = (float(np.median(each[1:])) for each in times)  # the first of each packs matrices
    return [
        row("time of a token, both to the model", both / one, "<= 1.5", both / one <= 1.5, f"{1e3 * one / 24:.1f} ms")
    ]


def alone(run: Any, settings: Sampling) -> None:
    run.generator.generate("", settings)


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
