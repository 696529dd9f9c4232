"""Small random models of transformers, saved as it saves them, with a byte tokenizer beside."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from homespun.data.vocabulary import Bytes
from homespun.model.decoder import Decoder

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

VOCAB = 272  # more than the 260 of the tokenizer
CLASSES = ("GPT2", "Llama", "Qwen3", "Mixtral", "Qwen3Moe", "DeepseekV3", "StableLm")
SEEDS = (0, 1, 2)


def settings(name: str, seed: int) -> dict[str, Any]:
    """A random small configuration of a class; the seed walks through the forms that matter."""
    pick = random.Random(f"{name} {seed}").choice
    flags = {"tie_word_embeddings": pick([True, False]), "bos_token_id": None, "eos_token_id": 256}
    if name == "GPT2":
        return flags | {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": pick([2, 4]), "n_positions": 64,
                        "n_inner": pick([None, 48]), "activation_function": ("gelu_new", "gelu", "gelu_new")[seed],
                        "tie_word_embeddings": seed != 2}  # fmt: skip
    common = flags | {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 128,
                      "intermediate_size": pick([48, 40]), "num_attention_heads": 4,
                      "rope_parameters": rotary(seed), "rms_norm_eps": pick([1e-5, 1e-6])}  # fmt: skip
    return common | _OWN[name](seed, pick)


def rotary(seed: int) -> dict[str, Any]:
    """Plain, stretched, and stretched in two other ways."""
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 16}  # fmt: skip
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 5000.0}
    return ({"rope_type": "default", "rope_theta": 10000.0}, llama3 | {"rope_theta": 1e5}, yarn)[seed]


def _llama(seed: int, pick: Callable[[list[Any]], Any]) -> dict[str, Any]:
    return {"num_key_value_heads": (4, 2, 1)[seed], "attention_bias": seed == 1, "mlp_bias": seed == 1,
            "head_dim": (None, 16, 8)[seed]}  # fmt: skip


def _qwen3(seed: int, pick: Callable[[list[Any]], Any]) -> dict[str, Any]:
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    window = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1} if seed == 1 else {}
    return {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": seed == 2, **window,
            **({"rope_parameters": linear} if seed == 1 else {})}  # fmt: skip


def _mixtral(seed: int, pick: Callable[[list[Any]], Any]) -> dict[str, Any]:
    return {"num_key_value_heads": 2, "num_local_experts": (4, 6, 8)[seed], "num_experts_per_tok": pick([1, 2, 3]),
            "sliding_window": 9 if seed == 1 else None, "head_dim": (None, 16, 8)[seed]}  # fmt: skip


def _qwen3_moe(seed: int, pick: Callable[[list[Any]], Any]) -> dict[str, Any]:
    return {"num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 8,
            "num_experts_per_tok": 3, "norm_topk_prob": seed != 1, "mlp_only_layers": [0] if seed == 1 else [],
            "decoder_sparse_step": 2 if seed == 2 else 1, "attention_bias": seed == 1}  # fmt: skip


def _deepseek(seed: int, pick: Callable[[list[Any]], Any]) -> dict[str, Any]:
    yarn = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 32, "rope_theta": 1e4,
            "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}  # fmt: skip
    return {"num_key_value_heads": 4, "q_lora_rank": (None, 24, 24)[seed], "kv_lora_rank": 16, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16, "v_head_dim": 16, "moe_intermediate_size": 16, "n_routed_experts": 8,
            "n_shared_experts": (1, 2, 1)[seed], "num_experts_per_tok": 3, "n_group": (1, 2, 4)[seed],
            "topk_group": (1, 1, 2)[seed], "first_k_dense_replace": (1, 0, 3)[seed], "norm_topk_prob": seed != 1,
            **({"rope_parameters": yarn} if seed == 1 else {"rope_parameters": rotary(0)})}  # fmt: skip


def _stablelm(seed: int, pick: Callable[[list[Any]], Any]) -> dict[str, Any]:
    share = {"partial_rotary_factor": (0.25, 1.0, 0.5)[seed]}
    return {"num_key_value_heads": (4, 2, 2)[seed], "use_qkv_bias": seed == 1, "layer_norm_eps": 1e-5,
            "rope_parameters": rotary(seed) | share}  # fmt: skip


_OWN = {"Llama": _llama, "Qwen3": _qwen3, "Mixtral": _mixtral, "Qwen3Moe": _qwen3_moe, "DeepseekV3": _deepseek,
        "StableLm": _stablelm}  # fmt: skip


def make(name: str, seed: int, **changes: Any) -> Any:
    """A model of a class with random weights, biases and norms included."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**settings(name, seed) | changes)
    prefix = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, prefix)(config).eval()
    for each, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "inv_freq" not in each:
            torch.nn.init.normal_(tensor.data, 1.0 if "norm" in each and each.endswith("weight") else 0.0, 0.1)
    return model


def save(model: Any, folder: Path) -> Path:
    """The model as transformers saves it, with a tokenizer.json."""
    model.save_pretrained(folder)
    Bytes().build([], 0)[0].save(folder / "tokenizer.json")
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """As transformers loads it; whatever is missing or left over is an error."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model.eval()


def tokens(rows: int = 2, length: int = 40) -> Tensor:
    """Random ids."""
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def greedy(model: Decoder, prompt: Tensor, count: int) -> Tensor:
    """The likeliest tokens, one after another, read through a cache."""
    cache = model.new_cache(len(prompt), prompt.size(1) + count)
    ids, read = prompt, prompt
    for _ in range(count):
        read = model(read, cache)[:, -1:].argmax(-1)
        ids = torch.cat((ids, read), dim=1)
    return ids
