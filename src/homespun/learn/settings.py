"""How a run keeps learning: sizes, limits and thresholds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from homespun.config import Config, Count, Fraction

Positive = Annotated[float, Field(gt=0)]


class LearnConfig(Config):
    """The settings of the learner, `learn.KEY=VALUE` on the command line.

    A cycle: `cycle_tokens` of new text are read `passes` times, with `replay` as the share of old text beside it, at
    `learning_rate` times the recipe's; after a refused cycle more carefully. A text is refused after `tries` of them.
    The gate: no held-out loss of an old domain may stand more than the share `tolerance` above the lowest it has had,
    or a part of the cycle is taken back; with `gate` false every finite cycle is kept. Held out of each domain: the
    share `held` of its texts; `evaluate_tokens` of them are measured. Kept to replay: `reservoir_tokens` of each one.

    What is taken: at most `queue` texts wait; `characters_per_minute` of each source (none: no limit); texts of at
    least `shortest` characters; none as alike to an earlier one as `alike` (an estimate of the Jaccard similarity), and
    none whose loss is below the share `known` of the loss on old text. `poll`: seconds between two looks at a source.
    `wait`: seconds after which a watching learner also starts a smaller cycle. `disk`: bytes the journal may take.
    """

    cycle_tokens: Count = 32768
    passes: Count = 1
    replay: Annotated[float, Field(ge=0, le=0.95)] = 0.75
    learning_rate: Positive = 0.3
    tries: Count = 6
    tolerance: Annotated[float, Field(ge=0)] = 0.02
    gate: bool = True
    held: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    evaluate_tokens: Count = 16384
    reservoir_tokens: Count = 1_000_000
    queue: Count = 2000
    characters_per_minute: Count | None = None
    shortest: Count = 32
    alike: Fraction = 0.8
    known: Fraction = 0.3
    poll: Positive = 1.0
    wait: Annotated[float, Field(ge=0)] = 30.0
    disk: Count = 2_000_000_000
