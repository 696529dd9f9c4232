"""The peers as contestants, in their own environment: nothing of Homespun is imported here.

nanoGPT comes from a clone, transformers and LitGPT from PyPI (requirements.txt), and `plain` from plain_gpt.py.
Models start from random weights and see random tokens: speed does not depend on them.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from contest import Row, Work, serve
from plain_gpt import PlainGPT
from sizes import Size
from torch import Tensor, nn
from validation import mean_loss

Loss = Callable[[Tensor, Tensor], Tensor]
"""Tokens and targets, both (B, T), to the mean loss."""


# -- their models -----------------------------------------------------------------------------------------------------


def plain(size: Size, settings: Row) -> nn.Module:
    return PlainGPT(size.vocab, size.width, size.layers, size.heads, size.context)


def nanogpt(size: Size, settings: Row) -> nn.Module:
    if not settings["nanogpt"]:
        raise RuntimeError("no clone of nanoGPT was named (--nanogpt PATH)")
    sys.path.insert(0, settings["nanogpt"])
    from model import GPT, GPTConfig  # the clone's own file

    return GPT(GPTConfig(size.context, size.vocab, size.layers, size.heads, size.width, dropout=0.0, bias=False))


def gpt2(size: Size, settings: Row) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(size.vocab, size.context, size.width, size.layers, size.heads)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, name, 0.0)
    return GPT2LMHeadModel(_open_end(config))


def llama(size: Size, settings: Row) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=_gated(size.width),
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(_open_end(config))


def litgpt(size: Size, settings: Row) -> nn.Module:
    from litgpt import GPT, Config

    config = Config(
        block_size=size.context,
        vocab_size=size.vocab,
        padded_vocab_size=size.vocab,
        n_layer=size.layers,
        n_head=size.heads,
        n_embd=size.width,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=_gated(size.width),
    )
    return GPT(config)


MODELS = {"plain": plain, "nanogpt": nanogpt, "gpt2": gpt2, "llama": llama, "litgpt": litgpt}
WITH_LOSS = ("plain", "nanogpt")  # model(tokens, targets) gives (logits, loss)


def _gated(width: int) -> int:
    """The hidden width at which three matrices have the size of GPT-2's two."""
    return 8 * width // 3 // 8 * 8


def _open_end(config: Any) -> Any:
    """No token ends a text: everyone writes the same number of tokens."""
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    return config


def loss_of(name: str, model: Any) -> Loss:
    """The mean loss, as each of them gives it."""
    if name in WITH_LOSS:
        return lambda tokens, targets: model(tokens, targets)[1]

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        logits = model(tokens) if name == "litgpt" else model(tokens, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return loss


# -- training ---------------------------------------------------------------------------------------------------------


def train(settings: Row) -> Work:
    """Forward, backward, clipping and AdamW, as these programs do them.

    settings: `bf16` for autocast, `compile`, and `best` for what their users could do on top without touching the
    code: AdamW's fused step, and an allocator that keeps its memory.
    """
    size = Size(**settings["size"])
    if settings["best"]:
        keep_memory()
    model = MODELS[settings["model"]](size, settings).train()
    options = {"fused": True} if settings["best"] else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, **options)
    called = torch.compile(model) if settings["compile"] else model
    loss_function = loss_of(settings["model"], called)
    text = torch.randint(size.vocab, (size.rows, size.context + 1))
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def run(steps: int) -> int:
        for _ in range(steps):
            with _autocast(settings):
                loss = loss_function(tokens, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return steps * tokens.numel()

    return Work(run, 3, _about(model))


def keep_memory() -> None:
    """glibc keeps what is freed: no mmap for large blocks, trimming from 1 GiB, 256 MiB at a time (malloc.h)."""
    with contextlib.suppress(AttributeError):
        for option, value in ((-4, 0), (-1, 2**30), (-2, 2**28)):
            ctypes.CDLL(None).mallopt(option, value)


def _autocast(settings: Row) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if settings["bf16"] else contextlib.nullcontext()


def _about(model: nn.Module) -> Row:
    count = sum(p.numel() for p in model.parameters())
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "remarks": f"{count / 1e6:.2f} M parameters",
    }


# -- decoding ---------------------------------------------------------------------------------------------------------


def decode(settings: Row) -> Work:
    """Greedy continuation of `batch` prompts of `prompt` tokens."""
    size, name = Size(**settings["size"]), settings["model"]
    model = MODELS[name](size, settings).eval()
    if settings["bf16"]:
        model = model.to(torch.bfloat16)
    prompts = torch.randint(size.vocab, (settings["batch"], settings["prompt"]))
    write = {"plain": _write_plain, "nanogpt": _write_nanogpt, "litgpt": _write_litgpt}.get(name, _write_transformers)
    once = write(model, prompts, settings)

    def run(tokens: int) -> int:
        with torch.inference_mode():
            written = once(tokens)
        if written != tokens * len(prompts):
            raise RuntimeError(f"{written} tokens were written instead of {tokens * len(prompts)}")
        return written

    return Work(run, settings["tokens"], _about(model))


Write = Callable[[int], int]
"""Writes so many tokens after each prompt; returns the number of tokens that were written in all."""


def _write_plain(model: Any, prompts: Tensor, settings: Row) -> Write:
    return lambda tokens: model.generate(prompts, tokens)[:, prompts.size(1) :].numel()


def _write_nanogpt(model: Any, prompts: Tensor, settings: Row) -> Write:
    """It has no greedy choice: the best of one."""
    return lambda tokens: model.generate(prompts, tokens, top_k=1)[:, prompts.size(1) :].numel()


def _write_transformers(model: Any, prompts: Tensor, settings: Row) -> Write:
    from transformers import CompileConfig

    compiled: Row = {}
    if settings["compile"]:
        compiled["cache_implementation"] = "static"
        compiled["compile_config"] = CompileConfig(mode="default", fullgraph=False, dynamic=False)
        compiled["compile_config"]._compile_all_devices = True  # by itself it compiles on a GPU only
    mask = torch.ones_like(prompts)

    def write(tokens: int) -> int:
        text = model.generate(prompts, attention_mask=mask, do_sample=False, max_new_tokens=tokens, **compiled)
        return text[:, prompts.size(1) :].numel()

    return write


def _write_litgpt(model: Any, prompts: Tensor, settings: Row) -> Write:
    from litgpt.generate import base

    model.max_seq_length = model.config.block_size
    model.set_kv_cache(batch_size=len(prompts), max_seq_length=model.max_seq_length)
    if settings["compile"]:
        name = "next_token" if len(prompts) == 1 else "batched_next_token"
        setattr(base, name, torch.compile(getattr(base, name), mode="reduce-overhead"))
    greedy = {"temperature": 0.0, "top_k": None, "top_p": 0.0}

    def write(tokens: int) -> int:
        whole = prompts.size(1) + tokens
        quiet = {"include_prompt": False, "include_eos": True}
        if len(prompts) == 1:
            return sum(1 for _ in base.generate_fn(model, prompts[0], whole, **greedy, **quiet))
        rows = base.batched_generate_fn(model, prompts, whole, sample_args=greedy, **quiet)
        return sum(len(row) for row in rows)

    return write


# -- validation -------------------------------------------------------------------------------------------------------


def evaluate(settings: Row) -> Work:
    """The loss of a checkpoint of nanoGPT's on the text whose `ids` it prepared, told at once."""
    sys.path.insert(0, settings["nanogpt"])
    from model import GPT, GPTConfig

    saved = torch.load(settings["checkpoint"], weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict(saved["model"])
    ids = np.fromfile(settings["ids"], dtype=np.uint16).astype(np.int64)
    # with targets it gives the logits of every place
    loss = mean_loss(lambda tokens: model(tokens, tokens)[0], ids, model.config.block_size)
    return Work(lambda amount: 0, 0, {"loss": loss})


TASKS = {"train": train, "decode": decode, "evaluate": evaluate}

if __name__ == "__main__":
    serve(lambda settings: TASKS[settings["task"]](settings))
