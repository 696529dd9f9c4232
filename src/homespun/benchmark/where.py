"""Where the time goes: what the profiler saw, sorted into a few kinds of work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from homespun.benchmark.ceilings import synchronize

KINDS = ("products", "attention", "elementwise", "optimizer", "data", "other", "between")
"""Matrix products; attention; elementwise work, norms, sums, copies; the optimizer with clipping; making batches; all
other operations (look-ups, sorting); what passes between operations: Python, views, waiting."""

DATA = "homespun: data"  # the range in which batches are made
_WHOLE = "homespun: profiled"
_INHERITED = ("attention", "optimizer", "data")  # whatever is called there belongs there
_FUSED = r"cpp_fused|triton_(poi|red|per|for)_"
_NAMES = {
    "data": re.escape(DATA),
    "optimizer": r"^optimizer\.|_foreach_|_fused_adam|multi_tensor",
    "elementwise": _FUSED,  # before the next two, whose words stand in the names of fused kernels too
    "attention": r"attention|attend|flash|fmha|sdpa",
    "products": r"(mm|matmul|linear|einsum|convolution|::mv|addmv|::dot)(_|\b)|linear_pointwise|pack_mm"
    r"|triton_tem|gemm|gemv|nvjet|cutlass|cublas|splitk",
    "between": r"^(torch::)?autograd::|^[^:]*backward\d*$|^aten::(as_strided|alias|detach|t|transpose|permute|expand"
    r"|expand_as|slice|select|narrow|split|unbind|chunk|(un)?squeeze|flatten|unflatten|view|view_as|reshape|_unsafe_view"
    r"|_reshape_alias|empty|empty_like|empty_strided|new_empty|lift_fresh|resize_|item|_local_scalar_dense)$",
}
_ELEMENTWISE = re.compile(
    r"aten::_?(r?sub|add|mul|div|neg|abs|exp|ldexp|log|pow|r?sqrt|square|reciprocal|sigmoid|silu|relu|tanh|softplus"
    r"|sin|cos|threshold|clamp|clamp_m(in|ax)|maximum|minimum|where|to|contiguous|cat|stack|zeros|zeros_like|ones"
    r"|ones_like|full|sum|mean|amax|max|min|var|logsumexp|isfinite|all|eq|ne|lt|le|gt|ge|bitwise_\w+|logical_\w+"
    r"|addcmul|addcdiv|lerp)(_backward)?_?$"
    r"|elementwise|reduce|gelu|softmax|norm|dropout|bernoulli|memcpy|memset|catarray|copy|clone|fill|zero_"
)
_FUSED_RUNS = re.compile("torch-compiled region|compiledfxgraph|compiledfunction")


def kind_of(name: str) -> str:
    """The kind of work that an operation or a kernel does, by its name."""
    lower = name.lower()
    for kind, pattern in _NAMES.items():
        if re.search(pattern, lower):
            return kind
    if _ELEMENTWISE.search(lower):
        return "elementwise"
    return "other" if "::" in name else "between"  # without a namespace it is a range of Python's


def profiled(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Runs `call` under the profiler: the share of each of `KINDS` in its time, 1 in all."""
    cuda = device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes of its own doings to the terminal
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    synchronize(device)
    with profile(activities=activities) as recorded, record_function(_WHOLE):
        call()
        synchronize(device)
    return shares(recorded.events() or [], cuda)


def shares(events: Iterable[Any], cuda: bool) -> dict[str, float]:
    """The shares of `KINDS` in what was recorded: of a processor's own time, or of kernels on a GPU."""
    own = [event for event in events if event.device_type == DeviceType.CPU]
    whole = next(event for event in own if event.name == _WHOLE)
    kinds = _Kinds()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in own:
        if cuda:
            for kernel in event.kernels:
                spent[kinds.of_kernel(event, kernel.name)] += kernel.duration
        elif kinds.inside(event, whole):
            spent[kinds.of(event)] += event.self_cpu_time_total
    if cuda:
        spent["between"] = max(0.0, whole.cpu_time_total - sum(spent.values()))
    total = sum(spent.values())
    return {kind: time / total for kind, time in spent.items()}


class _Kinds:
    """The kinds of events, with regard to what called them."""

    def __init__(self) -> None:
        self._inherited: dict[int, str | None] = {}

    def of(self, event: Any) -> str:
        """The kind of what a processor did in an event, other events apart."""
        if event.name == _WHOLE:
            return "between"
        if _FUSED_RUNS.search(event.name.lower()):  # on a processor, fused kernels are seen only as the time of
            return "elementwise"  # the compiled region that calls them
        return self._from_callers(event) or kind_of(event.name)

    def of_kernel(self, event: Any, kernel: str) -> str:
        """The kind of a kernel that an event started."""
        found = (self._from_callers(event), kind_of(kernel), kind_of(event.name))
        return next((kind for kind in found if kind not in (None, "other", "between")), "other")

    def inside(self, event: Any, whole: Any) -> bool:
        """Whether an event is part of the whole."""
        while event is not None and event is not whole:
            event = event.cpu_parent
        return event is whole

    def _from_callers(self, event: Any) -> str | None:
        if event is None:
            return None
        key = id(event)
        if key not in self._inherited:
            above = self._from_callers(event.cpu_parent)
            mine = kind_of(event.name)
            self._inherited[key] = above or (mine if mine in _INHERITED else None)
        return self._inherited[key]
