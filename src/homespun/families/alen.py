"""ALEN: pre-LayerNorm decoders with SwiGLU in five sizes, and the front door of its document.

The document's sizes hold exactly when the three matrices of SwiGLU carry two thirds of the stated hidden width each, as
Shazeer proposed, with separate embedding and head: 1.1 M, 21.1 M, 89 M, 404 M, 2.02 B.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from homespun.config import parse
from homespun.data.conversation import encode, render
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bpe, Bytes
from homespun.errors import ConfigError
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.generate.thought import LatentDecoder, ThoughtState
from homespun.learn.teach import Taught, Teacher, Teaching
from homespun.model.attention import GroupedAttention
from homespun.model.cost import cost
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import SwiGLU
from homespun.model.norms import LayerNorm
from homespun.model.positions import LearnedPositions, RotaryPositions
from homespun.optim import AdamW, Cosine
from homespun.train.recipe import Recipe, TrainConfig

__all__ = [
    "RECIPES",
    "LargeLanguageModel",
    "LargeModelConfig",
    "LatentDecoder",
    "ModelSize",
    "Stats",
    "Taught",
    "ThoughtState",
]


class ModelSize(enum.Enum):
    """The five presets."""

    Micro = "micro"
    Small = "small"
    Medium = "medium"
    Large = "large"
    XL = "xl"


@dataclass(frozen=True)
class LargeModelConfig:
    """The document's settings under the document's names; `d_head`: none means d_model / n_heads.

    `use_flash_attention` keeps no scores in memory; the result is the same. It cannot be switched off usefully: the
    fused kernel is always taken where there is one.
    """

    size: ModelSize
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    max_seq_len: int
    vocab_size: int
    dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    d_head: int | None = None
    use_rope: bool = True
    use_flash_attention: bool = True
    gradient_checkpointing: bool = False

    @staticmethod
    def micro() -> LargeModelConfig:
        """1.1 M parameters, for tests and demonstrations."""
        return LargeModelConfig(ModelSize.Micro, 64, 2, 2, 128, 128, 8000)

    @staticmethod
    def small() -> LargeModelConfig:
        """21.1 M parameters, for training on a CPU."""
        return LargeModelConfig(ModelSize.Small, 256, 4, 6, 1024, 256, 32000)

    @staticmethod
    def medium() -> LargeModelConfig:
        """89 M parameters, for one GPU."""
        return LargeModelConfig(ModelSize.Medium, 512, 8, 12, 2048, 512, 50000)

    @staticmethod
    def large() -> LargeModelConfig:
        """404 M parameters, for several GPUs."""
        return LargeModelConfig(ModelSize.Large, 1024, 16, 24, 4096, 1024, 50000, gradient_checkpointing=True)

    @staticmethod
    def xl() -> LargeModelConfig:
        """2 B parameters, for many GPUs."""
        return LargeModelConfig(ModelSize.XL, 2048, 32, 36, 8192, 2048, 50000, gradient_checkpointing=True)

    @staticmethod
    def of(size: ModelSize) -> LargeModelConfig:
        """The preset of a size."""
        presets = (
            LargeModelConfig.micro,
            LargeModelConfig.small,
            LargeModelConfig.medium,
            LargeModelConfig.large,
            LargeModelConfig.xl,
        )
        return dict(zip(ModelSize, presets, strict=True))[size]()

    def model(self, vocab: int | None) -> ModelConfig:
        """The same in Homespun's words."""
        return ModelConfig(
            vocab=vocab,
            width=self.d_model,
            layers=self.n_layers,
            context=self.max_seq_len,
            attention=GroupedAttention(heads=self.n_heads, head_size=self.d_head),
            feed_forward=SwiGLU(hidden=-(-2 * self.d_ff // 24) * 8),  # two thirds, rounded up to a multiple of 8
            norm=LayerNorm(eps=self.layer_norm_eps),
            positions=RotaryPositions() if self.use_rope else LearnedPositions(),
            tie_embeddings=False,
            dropout=self.dropout,
        )


def _recipe(size: ModelSize, learning_rate: float, batch_tokens: int) -> Recipe:
    config = LargeModelConfig.of(size)
    return Recipe(
        name=f"alen-{size.value}",
        model=config.model(None),
        tokenizer=Bpe(size=config.vocab_size),
        optimizer=AdamW(learning_rate=learning_rate, schedule=Cosine(warmup=100, floor=0.1)),
        train=TrainConfig(
            tokens=1_000_000, batch_tokens=batch_tokens, checkpoint_activations=config.gradient_checkpointing
        ),
    )


_RATES = {  # learning rate and tokens per step, by size
    ModelSize.Micro: (3e-3, 2048),
    ModelSize.Small: (1e-3, 4096),
    ModelSize.Medium: (6e-4, 16384),
    ModelSize.Large: (3e-4, 131072),
    ModelSize.XL: (2e-4, 524288),
}
RECIPES = {recipe.name: recipe for recipe in (_recipe(size, *rates) for size, rates in _RATES.items())}


@dataclass(frozen=True)
class Stats:
    """What `LargeLanguageModel.stats` tells: `parameters_str` is for people, such as `21.1M`."""

    parameters: int
    parameters_str: str
    vocab_size: int
    max_vocab_size: int


class LargeLanguageModel:
    """ALEN's language model. It starts with the 256 bytes as its vocabulary, so that any text can be given to it.

    `learn` first makes tokens of what occurs repeatedly in its text, up to the vocabulary of the settings. What was
    learnt is repeated with each later lesson; `undo` takes the last one back.
    """

    def __init__(self, config: LargeModelConfig):
        tokenizer = Bytes().build([], 0)[0]
        if config.vocab_size < tokenizer.vocab_size:
            raise ConfigError(
                f"vocab_size = {config.vocab_size} does not hold the 256 bytes and 4 special tokens",
                f"Choose {tokenizer.vocab_size} or more.",
            )
        self.config = config
        self.decoder = Decoder(config.model(config.vocab_size))
        self.decoder.checkpoint_activations = config.gradient_checkpointing
        learning_rate, _ = _RATES[config.size]
        settings = Teaching(learning_rate=learning_rate)
        self._teacher = Teacher(self.decoder, tokenizer, settings=settings, grows=True)

    @classmethod
    def with_size(cls, size: ModelSize) -> LargeLanguageModel:
        """A new model of a preset size."""
        return cls(LargeModelConfig.of(size))

    @property
    def model(self) -> Decoder:
        """The same as `decoder`: with `tokenizer` it makes of this a source of thoughts."""
        return self.decoder

    @property
    def tokenizer(self) -> Tokenizer:
        """What text is encoded with, as it has grown so far."""
        return self._teacher.tokenizer

    def learn(self, text: str) -> Taught:
        """Builds the vocabulary from a text, and reads it twenty times; tells what changed."""
        return self._teacher.learn(text)

    def learn_qa(self, question: str, answer: str) -> Taught:
        """Learns the answer to a question, until it is certain; tells what changed."""
        return self._teacher.learn_qa(question, answer)

    def train_on_sequence(self, text: str) -> Taught:
        """One gradient update on every next token of `text`, from its start to its end. Raises `DataError` where there
        is no text."""
        return self._teacher.train_on_sequence(text)

    def undo(self) -> None:
        """Takes the last lesson back. Raises `ConfigError` where there is none."""
        self._teacher.undo()

    def answer(self, question: str, max_tokens: int = 50) -> str:
        """The likeliest answer to a question, as `learn_qa` teaches them."""
        prompt = encode(render({"prompt": question, "completion": ""}), self.tokenizer)
        return Generator(self.decoder, self.tokenizer).generate(prompt, Sampling(max_tokens=max_tokens, temperature=0))

    def generate(self, prompt: str, max_tokens: int = 50, temperature: float = 0.8) -> str:
        """A continuation of `prompt`. Raises `ConfigError` for a temperature below 0 and for no tokens."""
        chosen = parse(Sampling, {"max_tokens": max_tokens, "temperature": temperature}, "the sampling settings")
        return Generator(self.decoder, self.tokenizer).generate(prompt, chosen)

    def stats(self) -> Stats:
        """Sizes of model and vocabulary."""
        count = cost(self.decoder.config).parameters
        return Stats(count, _short(count), self.tokenizer.vocab_size, self.config.vocab_size)


def _short(count: int) -> str:
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)
