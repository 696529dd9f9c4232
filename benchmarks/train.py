"""Training speed of our recipes and of the peers at the same size, interleaved: tokens/s, warm-up, memory.

    python benchmarks/train.py --size 10m --nanogpt CLONE --peers-python ENVIRONMENT/bin/python

A step is forward, backward, clipping and the optimizer's update on the same random tokens. docs/benchmarks.md says who
the contestants are. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

from dataclasses import asdict

from contest import Contestant, Row, contest, contest_options, peer
from sizes import SIZES

OURS = {  # name: model, optimizer
    "ours: house parts, AdamW": ("house", "adamw"),
    "ours: GPT-2's parts, AdamW": ("gpt2", "adamw"),
    "ours: house parts, Muon": ("house", "muon"),
}
COMES: Row = {"bf16": False, "compile": False, "best": False}
AUTOCAST: Row = {"bf16": True, "compile": False, "best": False}
BEST: Row = {"bf16": True, "compile": True, "best": True}
PEERS = {
    "plain: fp32": ("plain", COMES),
    "plain: at its best": ("plain", BEST),
    "nanoGPT: fp32, as it comes": ("nanogpt", COMES),
    "nanoGPT: bf16 autocast": ("nanogpt", AUTOCAST),
    "nanoGPT: at its best": ("nanogpt", BEST),
    "nanoGPT: at its best, in fp32": ("nanogpt", BEST | {"bf16": False}),
    "transformers GPT-2: fp32": ("gpt2", COMES),
    "transformers GPT-2: at its best": ("gpt2", BEST),
    "transformers Llama: fp32": ("llama", COMES),
    "transformers Llama: at its best": ("llama", BEST),
    "LitGPT: fp32": ("litgpt", COMES),
    "LitGPT: at its best": ("litgpt", BEST),
}
STEPS = {"10m": 4, "1m": 50, "124m": 2, "tiny": 2}


def main() -> None:
    parser = contest_options(__doc__)
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--steps", type=int, help="steps of each in a round")
    parser.add_argument("--compile", choices=("on", "off"), default="on", help="off: nobody compiles")
    given = parser.parse_args()
    task = {"task": "train", "size": asdict(SIZES[given.size])}
    steps = given.steps or STEPS[given.size]
    contestants = [
        Contestant(name, "ours.py", task | {"model": model, "optimizer": optimizer, "compile": given.compile}, steps)
        for name, (model, optimizer) in OURS.items()
    ]
    for name, (model, mode) in PEERS.items():
        compiled = mode["compile"] and given.compile == "on"
        contestants.append(peer(given, name, task | {"model": model} | mode | {"compile": compiled}, steps))
    contest(f"Training, {given.size}", contestants, given, size=str(SIZES[given.size]), steps=steps)


if __name__ == "__main__":
    main()
