"""Which class of Hugging Face's a model leaves as, or why none of them can hold it."""

from __future__ import annotations

from homespun.config import nearest
from homespun.errors import ConfigError
from homespun.exchange.deepseek import DEEPSEEK_V3
from homespun.exchange.dense import LLAMA, QWEN3, STABLELM
from homespun.exchange.gpt2 import GPT2
from homespun.exchange.layout import Difference, Layout
from homespun.exchange.mixtures import MIXTRAL, QWEN3_MOE
from homespun.model.decoder import ModelConfig

LAYOUTS = (LLAMA, QWEN3, STABLELM, GPT2, MIXTRAL, QWEN3_MOE, DEEPSEEK_V3)
"""The classes; another one is one more `Layout` and one more word here."""

_FAR = {"attention.kind": 16, "feed_forward.kind": 8, "norm.kind": 4, "positions.kind": 4}


def hf_class(model: ModelConfig) -> Layout | list[str]:
    """The first class that holds a model exactly; else the reasons why not, in sentences.

    The reasons are those of the nearest class, where there are the fewest.
    """
    found = {layout.architecture: layout.differences(model) for layout in LAYOUTS}
    for layout in LAYOUTS:
        if not found[layout.architecture]:
            return layout
    in_all = set.intersection(*({key for key, _, _ in reasons} for reasons in found.values()))
    name = min(found, key=lambda each: (_distance(found[each]), list(found).index(each)))
    own = sorted(found[name], key=lambda reason: reason[0] not in in_all)
    return [f"model.{key} = {ours!r}, but {name} has {theirs!r}" for key, ours, theirs in own]


def _distance(reasons: list[Difference]) -> int:
    return sum(_FAR.get(key, 1) for key, _, _ in reasons)


def layout_for(model: ModelConfig) -> Layout:
    """The class that a model leaves as. Raises `ConfigError` with the reasons when there is none."""
    found = hf_class(model)
    if isinstance(found, Layout):
        return found
    raise ConfigError(
        f"No class of Hugging Face's holds this model: {'; '.join(found)}", "Change that in a recipe and train anew."
    )


def layout_of(model_type: object) -> Layout:
    """The class of a config.json. Raises `ConfigError` when it is unknown."""
    for layout in LAYOUTS:
        if layout.model_type == model_type:
            return layout
    known = [layout.model_type for layout in LAYOUTS]
    raise ConfigError(
        f"config.json has model_type = {model_type!r:.80}, which is not known", nearest(str(model_type), known)
    )
