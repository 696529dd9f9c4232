"""The two numbers a language model is judged by."""

import math


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Bits the model needs for one byte of text: `nats` (the summed loss) over the `text_bytes` those tokens spell.

    Unlike a loss per token it can be compared between tokenizers; 8 is knowing nothing. NaN when there is no text.
    """
    return nats / (math.log(2) * text_bytes) if text_bytes else math.nan


def perplexity(nats: float, tokens: int) -> float:
    """Among how many equally likely tokens the model hesitates: exp of the mean loss in nats per token.

    NaN when there are no tokens, infinity when the mean is too large for a float.
    """
    if not tokens:
        return math.nan
    mean = nats / tokens
    return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan
