"""Greedy decoding by our generator and by the peers at the same size, interleaved: tokens/s of all rows together.

    python benchmarks/decode.py --size 10m --batch 1 --nanogpt CLONE --peers-python ENVIRONMENT/bin/python

The prompt is read in the measured time too. docs/benchmarks.md says who the contestants are. Nothing else may run on
the machine meanwhile.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from contest import Contestant, Row, contest, contest_options, peer
from sizes import SIZES

OURS: dict[str, Row] = {  # name: the model's kind, and what `Generator` is told
    "ours: fp32": {"model": "house", "generator": {}},
    "ours: bf16 weights": {"model": "house", "generator": {"weights": "bf16"}},
    "ours: int8 weights": {"model": "house", "generator": {"weights": "int8"}},
    "ours: GPT-2's parts, fp32": {"model": "gpt2", "generator": {}},
}
PEERS = {  # name: model, bf16, compiled
    "plain: fp32, no cache": ("plain", False, False),
    "nanoGPT: fp32, no cache": ("nanogpt", False, False),
    "transformers GPT-2: fp32": ("gpt2", False, False),
    "transformers Llama: fp32": ("llama", False, False),
    "transformers Llama: bf16": ("llama", True, False),
    "transformers Llama: fp32, static cache, compiled": ("llama", False, True),
    "LitGPT: fp32": ("litgpt", False, False),
    "LitGPT: bf16": ("litgpt", True, False),
    "LitGPT: fp32, compiled": ("litgpt", False, True),
}
SHARE = 8  # who reads the whole text again for each token writes an eighth as many: the first ones, which are cheapest


def main() -> None:
    parser = contest_options(__doc__)
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256, help="new tokens in each row")
    given = parser.parse_args()
    chosen = SIZES[given.size]
    vocab = max(chosen.vocab, 512)  # room for our generator's bytes
    size = replace(chosen, context=given.prompt + given.tokens, rows=given.batch, vocab=vocab)
    task = {"task": "decode", "size": asdict(size), "batch": given.batch, "prompt": given.prompt}
    contestants = [
        Contestant(name, "ours.py", task | {"tokens": given.tokens} | variant, given.tokens)
        for name, variant in OURS.items()
    ]
    for name, (model, bf16, compiled) in PEERS.items():
        tokens = max(1, given.tokens // SHARE) if model in ("plain", "nanogpt") else given.tokens
        settings = {"model": model, "bf16": bf16, "compile": compiled, "tokens": tokens}
        contestants.append(peer(given, name, task | settings, tokens))
    held = {"size": str(size), "prompt": given.prompt, "new tokens": given.tokens}
    contest(f"Decoding, {given.size}, batch {given.batch}", contestants, given, **held)


if __name__ == "__main__":
    main()
