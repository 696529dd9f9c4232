"""How rotary frequencies are stretched, so that a model reads further than it was trained.

Each kind gives its frequencies, in radians per place, from the unscaled `spans`, in places per radian; and two factors:
what the tables of cosine and sine are multiplied by, and what the softmax scale of multi-head latent attention is.
Operations stand in Hugging Face's order, so that the tables are equal bit for bit.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from homespun.config import Config, Count
from homespun.errors import ConfigError

Factor = Annotated[float, Field(ge=1)]


class LinearScaling(Config):
    """Every place counts as 1 / `factor` of a place (Chen et al., 2023)."""

    kind: Literal["linear"] = "linear"
    factor: Factor = 2.0

    def frequencies(self, spans: Tensor, base: float) -> Tensor:
        """Radians per place of each pair, (D/2,) -> (D/2,)."""
        return 1.0 / spans / self.factor

    def table_factor(self) -> float:
        """What cosine and sine are multiplied by."""
        return 1.0

    def softmax_factor(self) -> float:
        """What latent attention multiplies its softmax scale by."""
        return 1.0


class Llama3Scaling(Config):
    """Slow frequencies are divided by `factor`, fast ones kept, those between blended (Llama 3.1).

    `original_context`: the length of the first training. A wave longer than original_context / `low` is slow, one
    shorter than original_context / `high` is fast.
    """

    kind: Literal["llama3"] = "llama3"
    factor: Factor = 8.0
    low: Annotated[float, Field(gt=0)] = 1.0
    high: Annotated[float, Field(gt=0)] = 4.0
    original_context: Count = 8192

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if self.high <= self.low:
            raise ConfigError(f"high = {self.high} is not above low = {self.low}", "Llama 3.1 has low 1 and high 4.")
        return self

    def frequencies(self, spans: Tensor, base: float) -> Tensor:
        """Radians per place of each pair, (D/2,) -> (D/2,)."""
        frequencies = 1.0 / spans
        wave = 2 * math.pi / frequencies
        slow, fast = wave > self.original_context / self.low, wave < self.original_context / self.high
        share = (self.original_context / wave - self.low) / (self.high - self.low)
        scaled = torch.where(slow, frequencies / self.factor, frequencies)
        blended = (1 - share) * scaled / self.factor + share * scaled
        return torch.where(~slow & ~fast, blended, scaled)

    def table_factor(self) -> float:
        """What cosine and sine are multiplied by."""
        return 1.0

    def softmax_factor(self) -> float:
        """What latent attention multiplies its softmax scale by."""
        return 1.0


class YarnScaling(Config):
    """Pairs that turn less than `beta_slow` times in `original_context` are divided by `factor`, those that turn more
    than `beta_fast` times kept, with a ramp between (YaRN, Peng et al., 2023).

    `truncate`: the ramp's ends are whole numbers. The tables are multiplied by `attention_factor`; none means
    0.1 ln(factor) + 1, or with `mscale` and `mscale_all_dim` the ratio of that for both, as DeepSeek-V3 has it, whose
    latent attention multiplies its softmax scale by (0.1 mscale_all_dim ln(factor) + 1)^2 instead.
    """

    kind: Literal["yarn"] = "yarn"
    factor: Factor = 4.0
    original_context: Count = 4096
    beta_fast: Annotated[float, Field(gt=0)] = 32.0
    beta_slow: Annotated[float, Field(gt=0)] = 1.0
    truncate: bool = True
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    mscale: Annotated[float, Field(ge=0)] | None = None
    mscale_all_dim: Annotated[float, Field(ge=0)] | None = None

    def frequencies(self, spans: Tensor, base: float) -> Tensor:
        """Radians per place of each pair, (D/2,) -> (D/2,)."""
        dim = 2 * len(spans)

        def pair(turns: float) -> float:
            """The pair that turns so many times within the original context."""
            return (dim * math.log(self.original_context / (turns * 2 * math.pi))) / (2 * math.log(base))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        place = torch.arange(dim // 2, dtype=torch.float32, device=spans.device)
        kept = 1 - torch.clamp((place - low) / (high - low), 0, 1)
        return 1.0 / (self.factor * spans) * (1 - kept) + 1.0 / spans * kept

    def table_factor(self) -> float:
        """What cosine and sine are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude(1.0)

    def softmax_factor(self) -> float:
        """What latent attention multiplies its softmax scale by."""
        return self._magnitude(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _magnitude(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


Scaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="kind")]
"""The union of the kinds; another kind is one more class and one more word here."""
