"""From stories to a model that writes English: the main job, in small."""

import torch

import homespun as hs
from homespun.data.stories import Score, score
from homespun.train.log import PlainConsole

BOUND = 0.5
"""Share of sentences that must parse after 150 small steps; 0.71 was measured, and `make demo` trains longer."""


def judged(texts: list[str]) -> Score:
    return sum((score(text) for text in texts), start=Score(0, 0))


def test_a_short_run_writes_sentences_of_the_grammar(tmp_path):
    recipe = hs.recipe(
        "house-tiny", "train.steps=150", "train.batch_tokens=2048", "model.layers=2", "train.precision=fp32",
        "train.evaluate_every=1000", "train.sample_every=1000",
    )  # fmt: skip
    run = hs.train("stories:4000", recipe, out=tmp_path / "run", console=PlainConsole(quiet=True))
    written = judged(run.generate([""] * 20, max_tokens=150, temperature=0.7, seed=1))
    assert written.total > 100
    assert written.fraction > BOUND
    untrained = hs.Generator(hs.Decoder(run.recipe.model), run.tokenizer)
    torch.manual_seed(0)
    guessed = judged(untrained.batch([""] * 20, hs.Sampling(max_tokens=150, temperature=0.7, seed=1)))
    assert guessed.fraction < 0.05  # the judge does not wave everything through
