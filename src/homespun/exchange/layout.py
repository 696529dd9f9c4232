"""What a class of Hugging Face's holds, in our words: settings there and back, and what two settings differ in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homespun import config
from homespun.errors import ConfigError
from homespun.exchange.pieces import Rule
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import GELU, Experts, ReLU2, SwiGLU

ADDABLE = ("attention.bias", "attention.output_bias", "feed_forward.bias", "norm.bias", "feed_forward.router.bias_rate")
"""Biases that a class has and a model may lack: zeros stand for them, which changes no result."""

LAYERS = 1000  # as `ModelConfig` has it

Difference = tuple[str, Any, Any]
"""A dotted key under `model`, our value, and the one that the class would have."""


class Settings:
    """A config.json: its values with defaults, and errors that name the key."""

    def __init__(self, values: Mapping[str, Any], source: str = "config.json"):
        self.values, self.source = values, source

    def need(self, key: str) -> Any:
        """A value that has no default."""
        if self.values.get(key) is None:
            raise ConfigError(f"{self.source} lacks {key}", "It is not the whole configuration of this model.")
        return self.values[key]

    @property
    def layers(self) -> int:
        """How many there are, before any list is made of them."""
        layers: int = self.need("num_hidden_layers")
        if type(layers) is not int or layers > LAYERS:
            raise ConfigError(
                f"{self.source} has num_hidden_layers = {layers!r:.80}", f"At most {LAYERS} are possible."
            )
        return layers

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or the default where there is none or null."""
        value = self.values.get(key)
        return default if value is None else value

    def only(self, key: str, *allowed: Any) -> Any:
        """A value of which only some are supported; the first of them is the default. Raises `ConfigError`."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            known = ", ".join(map(repr, allowed))
            raise ConfigError(f"{self.source} has {key} = {value!r:.80}", f"Only {known} can be imported.")
        return value


@dataclass(frozen=True)
class Layout:
    """One class of Hugging Face's.

    `kinds`: what the parts of a model have to be. `read`: from its config.json to the settings of `ModelConfig`.
    `write`: back, for a model of these kinds. `rules`: where tensors stand on disk that do not keep name and form; they
    may depend on model and config.json. `ignored`: tensors on disk that are no part of the model (patterns). `prefix`:
    what old files may leave out before every name. `whole_heads`: the heads have to divide the width.
    """

    architecture: str
    model_type: str
    kinds: Mapping[str, tuple[str, ...]]
    read: Callable[[Settings], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig, Mapping[str, Any]], Sequence[Rule]] = lambda model, settings: ()
    ignored: Callable[[ModelConfig], Sequence[str]] = lambda model: (r".*\.rotary_emb\.inv_freq",)
    prefix: str = ""
    whole_heads: bool = False

    def model(self, settings: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """The architecture that a config.json describes. Raises `ConfigError` for what Homespun cannot be."""
        try:
            data = self.read(Settings(settings, source))
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ConfigError(
                f"{source} holds a value of the wrong type: {error}", "Mend it, or fetch it again."
            ) from None
        return config.parse(ModelConfig, data, source)

    def differences(self, model: ModelConfig) -> list[Difference]:
        """Why a model cannot leave as this class: what would not come back as it was. Empty: it can."""
        found = _kinds(self, config.to_dict(model))
        if found:
            return found + ([("softcap", model.softcap, None)] if model.softcap is not None else [])
        if self.whole_heads and model.width % (heads := getattr(model.attention, "heads", 1)):
            return [("attention.heads", heads, f"a divisor of model.width = {model.width}")]
        returned = canonical(self.model(self.write(model)))
        pairs = _compare("", config.to_dict(canonical(model)), config.to_dict(returned))
        return [(key, ours, theirs) for key, ours, theirs in pairs if not (key in ADDABLE and not ours and theirs)]


def canonical(model: ModelConfig) -> ModelConfig:
    """The same function of tokens in one form: defaults written out, and nothing that only training knows."""
    attention: Any = model.attention
    if isinstance(attention, GroupedAttention):
        attention = _grouped(attention, model)
    feed_forward: Any = model.feed_forward
    if isinstance(feed_forward, Experts) and set(feed_forward.dense_layers) >= set(range(model.layers)):
        feed_forward = feed_forward.dense
    if isinstance(feed_forward, SwiGLU | GELU | ReLU2):
        feed_forward = feed_forward.model_copy(update={"hidden": feed_forward.size(model.width)})
    elif isinstance(feed_forward, Experts):
        feed_forward = _experts(feed_forward, model)
    changes = {"attention": attention, "feed_forward": feed_forward, "dropout": 0.0, "initialize": "gpt2"}
    return model.model_copy(update={**changes, "embedding": None, "vocab": model.vocab or 1})


def _grouped(attention: GroupedAttention, model: ModelConfig) -> GroupedAttention:
    full = tuple(sorted(set(attention.full_layers) & set(range(model.layers))))
    window = attention.window if len(full) < model.layers else None
    return attention.model_copy(
        update={
            "kv_heads": attention.shared_heads,
            "head_size": attention.size(model.width),
            "output_bias": attention.biased_output,
            "window": window,
            "full_layers": full if window else (),
            "query_chunk": None,
        }
    )


def _experts(experts: Experts, model: ModelConfig) -> Experts:
    # the type in which a router computes makes no difference until the whole model is cast to a lower one
    rate = None if experts.router.bias_rate is None else 1e-3
    router = experts.router.model_copy(update={"precision": "fp32", "weights_precision": "fp32", "bias_rate": rate})
    dense = tuple(sorted(set(experts.dense_layers)))
    return experts.model_copy(
        update={
            "hidden": experts.size(model.width),
            "router": router,
            "dense_layers": dense,
            "dense_hidden": experts.dense.size(model.width) if dense else None,
            "balance_loss": 0.0,
            "z_loss": 0.0,
            "capacity": None,
        }
    )


def _kinds(layout: Layout, ours: Mapping[str, Any]) -> list[Difference]:
    wrong = [(part, allowed) for part, allowed in layout.kinds.items() if ours[part]["kind"] not in allowed]
    return [(f"{part}.kind", ours[part]["kind"], " or ".join(allowed)) for part, allowed in wrong]


def _compare(path: str, ours: Any, theirs: Any) -> Iterator[Difference]:
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        if ours != theirs:
            yield path, *(each["kind"] if isinstance(each, dict) else each for each in (ours, theirs))
    elif ours.get("kind") != theirs.get("kind"):
        yield f"{path}.kind", ours.get("kind"), theirs.get("kind")
    else:
        for key in ours:
            yield from _compare(f"{path}.{key}".lstrip("."), ours[key], theirs[key])
