"""Optimus Prime: multi-head latent attention, SwiGLU, RMSNorm, rotary positions; the defaults of its document.

`compression_ratio` is that of both latents: of queries, and of keys and values. The rotary key is one for all heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from homespun.data.corpus import DataConfig
from homespun.data.vocabulary import Bpe
from homespun.errors import ConfigError
from homespun.model import decoder
from homespun.model.attention import Attention, GroupedAttention, MultiHeadLatentAttention
from homespun.model.feedforward import SwiGLU
from homespun.model.norms import RMSNorm
from homespun.model.positions import RotaryPositions
from homespun.optim import AdamW, Cosine
from homespun.train.recipe import Recipe, TrainConfig

WARMUP = 100  # steps; the document names none


@dataclass(frozen=True)
class ModelConfig:
    """The document's settings of the architecture, under its names.

    `compression_ratio`: size of the latents over `embedding_dim`. `rope_seq_len`: the longest sequence. `num_kv_heads`
    counts only for `block="TransformerBlock"`, the document's ordinary attention. Added here: `block`, and `kv_rank`,
    the size of the latent of keys and values where it is not that of queries.
    """

    vocab_size: int = 50257
    embedding_dim: int = 768
    num_layers: int = 8
    num_attention_heads: int = 12
    num_kv_heads: int = 2
    checkpointing: bool = True
    compression_ratio: float = 0.5
    rope_seq_len: int = 2048
    mlp_ratio: float = 4
    dropout: float = 0.15
    block: Literal["MLATransformerBlock", "TransformerBlock"] = "MLATransformerBlock"
    kv_rank: int | None = None

    def model(self, vocab: int | None) -> decoder.ModelConfig:
        """The same in Homespun's words."""
        return decoder.ModelConfig(
            vocab=vocab,
            width=self.embedding_dim,
            layers=self.num_layers,
            context=self.rope_seq_len,
            attention=self.attention(),
            feed_forward=SwiGLU(hidden=int(self.mlp_ratio * self.embedding_dim)),
            norm=RMSNorm(),
            positions=RotaryPositions(),
            dropout=self.dropout,
        )

    def attention(self) -> Attention:
        """Heads compare as many numbers without place as width / heads, and half as many with it."""
        if self.block == "TransformerBlock":
            return GroupedAttention(heads=self.num_attention_heads, kv_heads=self.num_kv_heads)
        if self.block != "MLATransformerBlock":
            raise ConfigError(f"There is no block {self.block!r}", "Choose MLATransformerBlock or TransformerBlock.")
        size, rank = self.embedding_dim // self.num_attention_heads, int(self.compression_ratio * self.embedding_dim)
        return MultiHeadLatentAttention(
            heads=self.num_attention_heads,
            q_lora_rank=rank,
            kv_lora_rank=self.kv_rank or rank,
            qk_nope_head_dim=size,
            qk_rope_head_dim=size // 2,
            v_head_dim=size,
        )


@dataclass(frozen=True)
class TrainingConfig:
    """The document's settings of training, under its names.

    A step reads `batch_size` x `max_length` tokens. `dataset_name`, `dataset_size`, `num_workers` and the two folders
    are kept as they are given: data is named where a run is started, and everything of a run lies in its own folder.
    """

    batch_size: int = 64
    max_length: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    num_epochs: int = 3
    train_val_split: float = 0.9
    gradient_clip_val: float = 1.0
    dataset_name: str = "wikimedia/wikipedia"
    dataset_size: int = 200000
    num_workers: int = 4
    checkpoint_dir: str = "checkpoints"
    tensorboard_dir: str = "runs"

    def recipe(self, model: ModelConfig | None = None, name: str = "optimus-prime") -> Recipe:
        """The recipe of both. Its rows are as long as the model reads, its steps have the document's tokens."""
        model = model or ModelConfig()
        return Recipe(
            name=name,
            model=model.model(None),
            tokenizer=Bpe(size=model.vocab_size),
            data=DataConfig(validation_fraction=round(1 - self.train_val_split, 6)),
            optimizer=AdamW(
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                clip=self.gradient_clip_val,
                schedule=Cosine(warmup=WARMUP, floor=0.1),
            ),
            train=TrainConfig(
                epochs=self.num_epochs,
                batch_tokens=self.batch_size * self.max_length,
                checkpoint_activations=model.checkpointing,
            ),
        )


_MODELS = {
    "optimus-prime": ModelConfig(),
    "optimus-prime-compact": ModelConfig(kv_rank=128),
    "optimus-prime-standard": ModelConfig(block="TransformerBlock"),
}
RECIPES = {name: TrainingConfig().recipe(model, name) for name, model in _MODELS.items()}
