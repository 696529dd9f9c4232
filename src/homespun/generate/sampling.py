"""From logits to the next token: pure functions, and the settings that steer them. B rows, V vocabulary.

The controls act in this order, each on what the one before it left: repetition penalty -> frequency and presence
penalty -> logit bias -> temperature -> top-k -> top-p -> min-p -> typical-p -> draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from homespun.config import Config, Count
from homespun.errors import ConfigError

SEEDS = 2**31  # a seed chosen for the user is below this: short enough to be typed again
_COLDEST = 1e-30  # a temperature below it takes the likeliest token as surely; float32 ends at 1e-38
_FEW = 256  # most nuclei are found among so many tokens; sorting 50,000 takes a CPU 30 times as long
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, the step of SplitMix64


class Sampling(Config):
    """How the next token is chosen, and when a text ends.

    `max_tokens`: the most tokens that are written. `temperature`: logits are divided by it; 0 takes the most likely
    token (the lowest id of equals), whatever top-k, top-p, min-p and typical-p say. `top_k`: only that many most likely
    tokens. `top_p`: only the smallest set of most likely tokens with at least that probability. `min_p`: only tokens at
    least that many times as likely as the most likely one. `typical_p`: only the smallest set, with at least that
    probability, of the tokens whose surprise is nearest to the one expected (Meister et al., 2023).
    `repetition_penalty`: the logits of tokens that stand in the prompt or the text are divided by it where positive and
    multiplied where negative (Keskar et al., 2019). `frequency_penalty`: is taken from a token's logit as often as it
    was written; `presence_penalty`: once, if it was. The end token is never penalised. `logit_bias`: what is added to
    the logits of these ids.

    `beams`: above 1, the most likely text is searched along so many at once, and nothing is drawn. `length_penalty`: a
    beam's log-probability is divided by its length to this power. `regex`, `json_schema`: the text matches this regular
    expression, or is JSON as this schema says ({} means any object).

    `stop`: a text ends before the first of these strings. `seed`: none means another text each time.
    """

    max_tokens: Count = 200
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.8
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = {}
    beams: Annotated[Count, Field(le=64)] = 1
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    regex: str | None = None
    json_schema: dict[str, Any] | None = None
    stop: list[Annotated[str, Field(min_length=1)]] = []
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    @model_validator(mode="after")
    def _one_grammar(self) -> Sampling:
        if self.regex is not None and self.json_schema is not None:
            raise ConfigError("A text cannot be bound by both regex and json_schema", "Give one of them.")
        return self

    @property
    def controls(self) -> tuple[Any, ...]:
        """What decides a choice between tokens: texts in which these are equal are sampled together."""
        penalties = self.repetition_penalty, self.frequency_penalty, self.presence_penalty
        cuts = self.top_k, self.top_p, self.min_p, self.typical_p
        return self.temperature, *cuts, *penalties, *self.logit_bias.items()

    @property
    def penalizes(self) -> bool:
        """Whether a choice depends on the tokens before it."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)


def sample(
    logits: Tensor,
    sampling: Sampling,
    uniforms: Tensor | None,
    seen: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Logits (B, V) -> one id for each row (B,).

    `uniforms` (B,) are numbers in [0, 1), one for each row, that decide the draw: a row's id depends on its own numbers
    and on nothing else in the batch; temperature 0 needs none. `seen` (B, V) is true for the tokens that the repetition
    penalty concerns, and `counts` (B, V) says how often each was written.
    """
    return choose(logits, sampling, uniforms, seen, counts)[0]


def choose(
    logits: Tensor,
    sampling: Sampling,
    uniforms: Tensor | None,
    seen: Tensor | None = None,
    counts: Tensor | None = None,
    careful: bool = False,
) -> tuple[Tensor, list[float]]:
    """What `sample` gives; and if `careful`, about how far each logit of a row may be off without another choice, B.

    A chosen token has a span of the numbers in [0, 1). Its edge F moves by at most 2 F (1 - F) times the error of the
    logits, and what a cut leaves out changes where two logits change places.
    """
    if sampling.temperature == 0 or uniforms is None:
        logits = penalize(logits.float(), sampling, seen, counts)
        best = logits.topk(min(2, logits.size(-1))).values.tolist() if careful else []
        return logits.argmax(-1), [(row[0] - row[1]) / 2 if len(row) > 1 else math.inf for row in best]
    # Rounding must not favour the first tokens of a large vocabulary; Apple's GPUs know no float64.
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    stages, cuts = [tempered(logits, sampling, seen, counts)], _cuts(sampling, logits.size(-1))
    for cut in cuts:
        stages.append(cut.keep(stages[-1]))
    reached = stages[-1].softmax(-1).cumsum(-1, dtype=exact)
    total = reached[:, -1:]
    number = uniforms.to(reached.device, exact).clamp(max=1 - torch.finfo(exact).eps / 2)[:, None] * total
    ids = torch.searchsorted(reached, number, right=True).clamp(max=logits.size(-1) - 1)  # NaN finds no place
    if not careful:
        return ids.squeeze(1), []
    told = torch.cat((number, total, reached.gather(1, ids), reached.gather(1, (ids - 1).clamp(min=0)), ids), dim=1)
    slack = [
        min(_room(number / total, upper / total), _room(number / total, lower / total if place else 0.0))
        for number, total, upper, lower, place in told.tolist()
    ]
    for cut, before, after in zip(cuts, stages, stages[1:], strict=False):
        slack = list(map(min, slack, cut.slack(before, after)))
    return ids.squeeze(1), [each * sampling.temperature for each in slack]


def shape(logits: Tensor, sampling: Sampling, seen: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
    """The float32 logits (B, V) of the distribution that is drawn from; -inf is never drawn, and the best one stays.

    Needs a temperature above 0. With typical-p the best one may go, but something stays.
    """
    logits = tempered(logits, sampling, seen, counts)
    for cut in _cuts(sampling, logits.size(-1)):
        logits = cut.keep(logits)
    return logits


def tempered(logits: Tensor, sampling: Sampling, seen: Tensor | None, counts: Tensor | None) -> Tensor:
    """The float32 logits before anything is cut off; the largest is 0, so a tiny temperature cannot overflow."""
    logits = penalize(logits.float(), sampling, seen, counts)
    return (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, _COLDEST)


@dataclass(frozen=True)
class _Cut:
    """Puts logits (B, V) to -inf: all but those that are highest in `order`, of `mass` together or above a `level`."""

    keep: Callable[[Tensor], Tensor]
    mass: float | None = None
    level: float | None = None
    order: Callable[[Tensor], Tensor] = torch.Tensor.float

    def slack(self, before: Tensor, after: Tensor) -> list[float]:
        """About how far each logit may be off while the same ones stay, B."""
        if self.level is not None:
            return ((before - self.level).abs().amin(-1) / 2).tolist()
        kept, height = after > -math.inf, self.order(before)
        least = height.masked_fill(~kept, math.inf).min(-1)
        slack = ((least.values - height.masked_fill(kept, -math.inf).amax(-1)) / 2).tolist()
        if self.mass is None:
            return slack
        q = before.softmax(-1, dtype=torch.float32)
        masses = torch.stack(((q * kept).sum(-1), q.gather(-1, least.indices[:, None]).squeeze(-1)), dim=-1).tolist()
        rooms = [min(_room(self.mass, mass), _room(self.mass, mass - last)) for mass, last in masses]
        return list(map(min, slack, rooms))


def _cuts(sampling: Sampling, vocab: int) -> list[_Cut]:
    """What is cut off, in order."""
    k, p, least, typical = sampling.top_k, sampling.top_p, sampling.min_p, sampling.typical_p
    cuts = []
    if k is not None and k < vocab:
        cuts.append(_Cut(lambda logits: keep_top_k(logits, k)))
    if p is not None and p < 1:
        cuts.append(_Cut(lambda logits: keep_top_p(logits, p), mass=p))
    if least:
        level = math.log(least)
        cuts.append(_Cut(lambda logits: logits.masked_fill(logits < level, -math.inf), level=level))
    if typical is not None and typical < 1:
        cuts.append(_Cut(lambda logits: keep_typical(logits, typical), mass=typical, order=_typicality))
    return cuts


def _room(number: float, edge: float) -> float:
    """About how far each logit may be off before an edge of a share of the probability moves over a number."""
    return abs(number - edge) / max(2 * edge * (1 - edge), 1e-300)


def penalize(logits: Tensor, sampling: Sampling, seen: Tensor | None, counts: Tensor | None) -> Tensor:
    """The penalties and the bias on logits (B, V); see `Sampling` and `sample`."""
    penalty, frequency, presence = sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty
    if penalty != 1 and seen is not None:
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if (frequency or presence) and counts is not None:
        logits = logits - frequency * counts - presence * (counts > 0)
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
        logits = logits.index_add(1, ids, logits.new_tensor([[*sampling.logit_bias.values()]]).expand(len(logits), -1))
    return logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with all but the k largest at -inf; of equals at the border the lowest ids stay."""
    least = logits.topk(k).values[:, -1:]
    return _keep_largest(logits, least, k)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with all at -inf but the smallest set of largest ones whose probability is at least p.

    At least one stays; of equals at the border the lowest ids stay.
    """
    few = logits.size(-1)
    if logits.device.type == "cpu":  # a GPU sorts all, which is quick, and need not wait for the question below
        few = min(few, _FEW)
    total = logits.logsumexp(-1, keepdim=True)
    largest = logits.topk(few).values  # in descending order
    before = (largest - total).exp().cumsum(-1)
    if few < logits.size(-1) and bool((before[:, -1] < p).any()):
        largest = logits.sort(descending=True).values
        before = (largest - total).exp().cumsum(-1)
    count = ((before < p).sum(-1, keepdim=True) + 1).clamp(max=largest.size(-1))  # rounding may leave the sum below p
    return _keep_largest(logits, largest.gather(-1, count - 1), count)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with all at -inf but the smallest set, with probability at least p, of the tokens whose surprise
    -log q is nearest to the entropy of q; of equals at the border the lowest ids stay."""
    height, order = _typicality(logits).sort(descending=True, stable=True)
    before = logits.softmax(-1).gather(-1, order).cumsum(-1).roll(1, -1)
    before[:, 0] = 0
    kept = (before < p) & height.isfinite()  # rounding may leave the sum below p
    return logits.masked_fill(~torch.zeros_like(kept).scatter(-1, order, kept), -math.inf)


def _typicality(logits: Tensor) -> Tensor:
    """How near the surprise of each token is to the expected one: at most 0, and -inf where the logit is."""
    log_q = logits.log_softmax(-1)
    entropy = torch.special.entr(log_q.exp()).sum(-1, keepdim=True)
    return -(log_q + entropy).abs()


def _keep_largest(logits: Tensor, least: Tensor, count: Tensor | int) -> Tensor:
    """The `count` largest logits, of which `least` (B, 1) is the smallest; the others become -inf."""
    above, equal = logits > least, logits == least
    ties = count - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | equal & (equal.cumsum(-1) <= ties)), -math.inf)


def draws(seeds: np.ndarray, places: np.ndarray) -> Tensor:
    """Numbers in [0, 1), float64, each a pure function of a seed and a place in the text (uint64 arrays of one shape).

    There is no generator state: a text that is continued at any token goes on as if it had not been interrupted, and
    machines and devices agree. The function is SplitMix64 (Steele et al., 2014), started at the mixed seed.
    """
    bits = _mix(_mix(seeds + _GOLDEN) + places * _GOLDEN) >> np.uint64(11)
    return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)


def _mix(z: np.ndarray) -> np.ndarray:
    """Spreads every bit over all 64; wraps around, as unsigned arrays do."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
