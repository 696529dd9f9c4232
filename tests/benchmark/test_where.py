"""Every moment of what was profiled is sorted into one kind of work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import record_function

from homespun.benchmark.where import _WHOLE, DATA, KINDS, kind_of, profiled, shares

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::addmm", "products"),
        ("aten::baddbmm", "products"),
        ("mkldnn::_linear_pointwise", "products"),
        ("aten::_grouped_mm", "products"),
        ("aten::_weight_int8pack_mm", "products"),
        ("nvjet_tst_128x64_h_bz_coopA_NTT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("autograd::engine::evaluate_function: ScaledDotProductFlashAttentionForCpuBackward0", "attention"),
        ("cpp_fused_add_mm_mul_3", "elementwise"),
        ("triton_poi_fused_mm_silu_2", "elementwise"),
        ("triton_tem_fused_mm_4", "products"),
        ("aten::silu_backward", "elementwise"),
        ("aten::_fused_rms_norm", "elementwise"),
        ("aten::_to_copy", "elementwise"),
        ("aten::add_", "elementwise"),
        ("aten::sum", "elementwise"),
        ("aten::_log_softmax", "elementwise"),
        ("Memcpy HtoD (Pinned -> Device)", "elementwise"),
        ("Optimizer.step#AdamW.step", "optimizer"),
        ("aten::_foreach_norm", "optimizer"),
        ("aten::embedding", "other"),
        ("aten::sort", "other"),
        ("aten::index_select", "other"),
        ("aten::view", "between"),
        ("MmBackward0", "between"),
        ("TorchDynamo Cache Lookup", "between"),
        (DATA, "data"),
    ],
)
def test_operations_and_kernels_are_sorted_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_products_dominate_a_wide_product_and_the_shares_are_a_whole() -> None:
    x, w = torch.randn(256, 1024), torch.randn(1024, 1024)
    where = profiled(lambda: [(x @ w).relu() for _ in range(32)], CPU)
    assert tuple(where) == KINDS
    assert sum(where.values()) == pytest.approx(1)
    assert where["products"] == max(where.values()) > 0.5


def test_what_an_optimizer_or_a_range_calls_belongs_to_it() -> None:
    weight = torch.nn.Parameter(torch.randn(512, 512))
    weight.grad = torch.randn(512, 512)

    class Products(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            for _ in range(20):
                weight.grad @ weight.grad  # type: ignore[operator]

    optimizer = Products([weight], {})
    where = profiled(optimizer.step, CPU)
    assert where["optimizer"] > 0.5 and where["products"] == 0

    def data() -> None:
        with record_function(DATA):
            for _ in range(20):
                torch.randn(512, 512).sort()

    assert profiled(data, CPU)["data"] > 0.5


def event(name: str, parent: Any = None, kernels: Any = (), **named: Any) -> Any:
    return SimpleNamespace(name=name, cpu_parent=parent, device_type=DeviceType.CPU, kernels=list(kernels), **named)


def kernel(name: str, duration: float) -> Any:
    return SimpleNamespace(name=name, duration=duration)


def test_on_a_gpu_kernels_count_and_the_rest_is_waiting() -> None:
    whole = event(_WHOLE, cpu_time_total=100.0)
    step = event("Optimizer.step#AdamW.step", whole)
    events = [
        whole,
        event("aten::mm", whole, [kernel("nvjet_tst_128", 30.0)]),
        event("Torch-Compiled Region: 0/0", whole, [kernel("triton_per_fused_add_rms_norm_1", 20.0)]),
        step,
        event("aten::mul", step, [kernel("void at::native::vectorized_elementwise_kernel", 10.0)]),
        event("aten::embedding", whole, [kernel("void at::native::indexSelectLargeIndex", 5.0)]),
    ]
    where = shares(events, cuda=True)
    expected = {"products": 0.3, "elementwise": 0.2, "optimizer": 0.1, "other": 0.05, "between": 0.35}
    assert where == pytest.approx(dict.fromkeys(KINDS, 0.0) | expected)
