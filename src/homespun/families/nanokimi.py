"""nanoKimi: latent attention, a mixture of experts, Muon; three sizes, each also in the form of Kimi-K2 itself.

Its document draws attention in which learned latents read the whole sequence and every token reads them, which tells a
token its future. Causal latent attention keeps the drawing and lets nothing flow backwards. `-mla` is Kimi-K2's own
form: multi-head latent attention, a sigmoid router that is balanced by a bias, a shared expert, a dense first layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homespun import config
from homespun.config import Count
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bpe, Bytes
from homespun.families.nanokimi_data import (
    DataConfig,
    ModelEvaluator,
    NanoGPTComparison,
    RandomTokens,
    TextDataProcessor,
    TokenDataset,
    TokenFile,
)
from homespun.generate import engine
from homespun.generate.sampling import Sampling
from homespun.model.attention import CausalLatentAttention, MultiHeadLatentAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import Experts, FeedForward, SigmoidRouter, SoftmaxRouter, SwiGLU
from homespun.model.feedforward.experts import Coefficient
from homespun.optim import Muon, WarmupStableDecay
from homespun.train.recipe import Recipe, TrainConfig

__all__ = [
    "RECIPES",
    "DataConfig",
    "Generator",
    "KimiConfig",
    "KimiModel",
    "MixtureConfig",
    "ModelEvaluator",
    "NanoGPTComparison",
    "RandomTokens",
    "TextDataProcessor",
    "TokenDataset",
    "TokenFile",
]


class MixtureConfig(config.Config):
    """What `moe` of a `KimiConfig` may hold.

    `hidden`: of one expert; none lets all experts of a layer have together as many parameters as one dense SwiGLU,
    which is what meets the documented sizes. The weights of the losses are those of `Experts`.
    """

    use_moe: bool = True
    num_experts: Count = 8
    top_k: Count = 2
    hidden: Count | None = None
    balance_loss: Coefficient = 0.01
    z_loss: Coefficient = 1e-3

    def feed_forward(self, width: int) -> FeedForward:
        """The feed-forward of a model of that width."""
        if not self.use_moe:
            return SwiGLU()
        hidden = self.hidden or max(8, 8 * width // (3 * self.num_experts) // 8 * 8)
        return Experts(
            experts=self.num_experts,
            hidden=hidden,
            router=SoftmaxRouter(top_k=self.top_k),
            balance_loss=self.balance_loss,
            z_loss=self.z_loss,
        )


@dataclass(frozen=True)
class KimiConfig:
    """The document's settings under the document's names; `moe`: see `MixtureConfig`.

    Heads are half as wide as n_embd / n_head, and two of them share keys and values: with the latents' own projections
    a layer of attention then has the parameters of an ordinary one.
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    block_size: int = 1024
    moe: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = 0.0

    def model(self, vocab: int | None) -> ModelConfig:
        """The same in Homespun's words."""
        attention = CausalLatentAttention(
            heads=self.n_head,
            kv_heads=self.n_head // 2 if self.n_head % 2 == 0 else None,
            head_size=max(2, self.n_embd // self.n_head // 4 * 2),
            block=min(64, max(1, self.block_size // 4)),
        )
        return ModelConfig(
            vocab=vocab,
            width=self.n_embd,
            layers=self.n_layer,
            context=self.block_size,
            attention=attention,
            feed_forward=config.parse(MixtureConfig, self.moe, "moe").feed_forward(self.n_embd),
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class _Size:
    """One of the documented sizes: its settings, and what only one of the two forms has."""

    config: KimiConfig
    vocab: int
    rank: int  # of Kimi-K2's latent of keys and values
    hidden: int  # of one expert in Kimi-K2's form, chosen to meet the same total
    train: TrainConfig
    warmup: int

    def latent(self) -> ModelConfig:
        """As documented."""
        return self.config.model(None)

    def mla(self) -> ModelConfig:
        """Kimi-K2's form; the dense first layer is as wide as the experts that a token uses."""
        c, mixture = self.config, config.parse(MixtureConfig, self.config.moe, "moe")
        experts = Experts(
            experts=mixture.num_experts,
            hidden=self.hidden,
            shared=1,
            dense_layers=(0,),
            dense_hidden=(mixture.top_k + 1) * self.hidden,
            router=SigmoidRouter(top_k=mixture.top_k, scale=1.414),  # sqrt(top_k), as Kimi-K2's 2.827 is sqrt(8)
            balance_loss=0.0,  # the router's bias balances
            z_loss=0.0,
        )
        attention = MultiHeadLatentAttention(heads=c.n_head, kv_lora_rank=self.rank, q_lora_rank=c.n_embd // 2)
        return ModelConfig(
            width=c.n_embd, layers=c.n_layer, context=c.block_size, attention=attention, feed_forward=experts
        )

    def recipe(self, name: str, model: ModelConfig, qk_clip: float | None) -> Recipe:
        """Trained with Muon, and AdamW for what is no hidden matrix."""
        schedule = WarmupStableDecay(warmup=self.warmup, decay=0.4)
        optimizer = Muon(
            learning_rate=0.02, adam_learning_rate=3e-3, qk_clip=qk_clip, qk_clip_every=10, schedule=schedule
        )
        return Recipe(name=name, model=model, tokenizer=Bpe(size=self.vocab), optimizer=optimizer, train=self.train)


_SIZES = {
    "nano": _Size(
        # the embedding alone would be 19.3 M with GPT-2's vocabulary
        KimiConfig(n_layer=6, n_head=6, n_embd=384, vocab_size=4096, moe={"num_experts": 4, "hidden": 176}),
        vocab=4096,
        rank=128,
        hidden=168,
        train=TrainConfig(minutes=10, batch_tokens=2048),
        warmup=20,
    ),
    "small": _Size(
        KimiConfig(moe={"num_experts": 8}),
        vocab=50257,
        rank=256,
        hidden=264,
        train=TrainConfig(tokens=2_500_000_000, batch_tokens=131072),
        warmup=100,
    ),
    "medium": _Size(
        KimiConfig(n_layer=24, n_head=16, n_embd=1024, moe={"num_experts": 16}),
        vocab=50257,
        rank=256,
        hidden=184,
        train=TrainConfig(tokens=7_000_000_000, batch_tokens=524288),
        warmup=200,
    ),
}
RECIPES = {f"nanokimi-{name}": size.recipe(f"nanokimi-{name}", size.latent(), None) for name, size in _SIZES.items()}
RECIPES |= {
    f"nanokimi-{name}-mla": size.recipe(f"nanokimi-{name}-mla", size.mla(), 100.0) for name, size in _SIZES.items()
}


class KimiModel(Decoder):
    """The model as nanoKimi's document builds it: `model(ids)` (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, config: KimiConfig | None = None):
        config = config or KimiConfig()
        super().__init__(config.model(config.vocab_size))


class Generator:
    """Writes text with a model; `tokenizer`: one, or the place of a tokenizer.json. None: text is spelled in bytes."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer | str | Path | None = None):
        if tokenizer is None:
            tokenizer, _ = Bytes().build([], 0)
        self.tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
        self.engine = engine.Generator(model, self.tokenizer)

    def generate_text(
        self,
        prompt: str,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool = True,
        seed: int | None = None,
    ) -> str:
        """The continuation of `prompt`. Without `use_cache` the whole text is read for each token: slower, the same."""
        settings = {"max_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        sampling = config.parse(Sampling, settings | {"seed": seed}, "generate_text")
        return self.engine.generate(prompt, sampling) if use_cache else self._recompute(prompt, sampling)

    def _recompute(self, prompt: str, sampling: Sampling) -> str:
        """A text goes on in the same way from its tokens as if it had not been interrupted: here after each token."""
        ids = self.tokenizer.encode(prompt)
        stream = self.tokenizer.decoder()
        stream.extend(ids)
        one, text = sampling.model_copy(update={"max_tokens": 1}), ""
        for _ in range(sampling.max_tokens):
            completion = self.engine.complete([ids], one)[0]
            one = one.model_copy(update={"seed": completion.seed})
            if completion.finish == "stop":
                break
            ids = [*(ids or [self.tokenizer.end]), completion.tokens[-1].id]
            text += stream.push(ids[-1])
        return text
