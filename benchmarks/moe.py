"""What it costs to be sparse: experts beside a dense feed-forward of the same active size, and beside a plain loop.

    python benchmarks/moe.py --rounds 5

One line for each case: milliseconds of forward and backward (median of the rounds, interleaved) and ratios.
`over_dense`: against SwiGLU of hidden width top_k x expert hidden (aim: at most 1.15 in fp32, 1.5 in bf16 at 8
experts). `loop_over`: how many times longer a loop takes, in which each expert finds its tokens by a mask and its
weights by an index, as transformers' own does (aim: 5 at 64 experts). Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from contest import machine, options, publish

from homespun.model.attention import GroupedAttention
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import Experts, SoftmaxRouter, SwiGLU
from homespun.model.feedforward.experts import MixtureOfExperts
from homespun.train.machine import keep_memory

CASES = [  # dtype, tokens, width, hidden of an expert, experts, top_k
    (torch.float32, 4096, 384, 512, 8, 2),
    (torch.bfloat16, 4096, 384, 512, 8, 2),
    (torch.float32, 4096, 768, 1024, 8, 2),
    (torch.bfloat16, 4096, 768, 1024, 8, 2),
    (torch.float32, 512, 384, 128, 64, 4),
    (torch.bfloat16, 512, 384, 128, 64, 4),
    (torch.float32, 2048, 384, 128, 64, 4),
    (torch.bfloat16, 2048, 384, 128, 64, 4),
]


def looped(part: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """The plain way: every expert looks for its tokens in turn."""
    rows = x.flatten(0, 1)
    routing = part.gate(rows)
    out = torch.zeros_like(rows)
    for expert in range(part.config.experts):
        token, choice = torch.where(routing.chosen == expert)
        gate, up = F.linear(rows[token], part.experts.gate_up_proj[expert]).chunk(2, -1)
        y = F.linear(F.silu(gate) * up, part.experts.down_proj[expert]) * routing.weights[token, choice, None]
        out = out.index_add(0, token, y.to(out.dtype))
    return out.view_as(x)


def trained(part: torch.nn.Module, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], float]:
    """A function that goes forward and backward once, and returns the milliseconds."""

    def once() -> float:
        part.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        run(x.detach().requires_grad_()).backward(torch.ones_like(x))
        return (time.perf_counter() - begin) * 1e3

    return once


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(rounds=7)
    given = parser.parse_args()
    about, rows = machine(), []
    keep_memory()
    for dtype, tokens, width, hidden, experts, top_k in CASES:
        torch.manual_seed(0)
        settings = Experts(experts=experts, hidden=hidden, router=SoftmaxRouter(top_k=top_k), balance_loss=0, z_loss=0)
        model = ModelConfig(width=width, attention=GroupedAttention(heads=6), feed_forward=settings)
        sparse, dense = settings.build(model, 0), SwiGLU(hidden=top_k * hidden).build(model, 0)
        for parameter in (*sparse.parameters(), *dense.parameters()):
            torch.nn.init.normal_(parameter, 0.0, 0.02)
        sparse, dense, x = sparse.to(dtype), dense.to(dtype), torch.randn(8, tokens // 8, width, dtype=dtype)
        runs = {
            "experts": trained(sparse, lambda x, part=sparse: part(x)[0], x),
            "dense": trained(dense, lambda x, part=dense: part(x)[0], x),
            "loop": trained(sparse, lambda x, part=sparse: looped(part, x), x),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(given.rounds + 1):
            for name, once in runs.items():
                if turn:  # the first warms up
                    times[name].append(once())
                else:
                    once()
        took = {name: statistics.median(each) for name, each in times.items()}
        case = {"dtype": str(dtype).removeprefix("torch."), "tokens": tokens, "width": width, "hidden": hidden}
        ratios = {"over_dense": took["experts"] / took["dense"], "loop_over": took["loop"] / took["experts"]}
        figures = {f"{name} ms": round(value, 2) for name, value in took.items()}
        figures |= {name: round(value, 2) for name, value in ratios.items()}
        rows.append({**case, "experts": experts, "top_k": top_k, **figures})
    held = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": given.rounds}
    publish(given.results, "Mixture of experts, forward and backward", rows, about | held)


if __name__ == "__main__":
    main()
