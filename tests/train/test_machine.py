"""The machine is described in words, and memory is counted within the limits of a container."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from homespun.train import machine


def test_the_environment_is_plain_data_with_the_keys_that_reports_read() -> None:
    found = machine.environment()
    assert json.loads(json.dumps(found)) == found
    assert {"homespun", "torch", "python", "platform", "cpu", "cores", "threads", "memory", "device"} <= found.keys()
    assert found["torch"] == torch.__version__ and found["threads"] == 1 and found["cores"] >= 1


def test_available_memory_is_real_and_within_the_whole() -> None:
    free = machine.available_memory()
    assert 2**20 < free <= (machine._total_memory() or free)
    assert machine.available_memory(torch.device("cpu")) > 2**20


def write(path: Path, **files: object) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(f"{content}\n")


def test_limits_of_both_kinds_of_control_groups_are_found(tmp_path: Path) -> None:
    own = tmp_path / "own"
    write(tmp_path / "new" / "a" / "b", memory__max="max", memory__current=5)
    write(tmp_path / "new" / "a", memory__max=1000, memory__current=700, memory__stat="anon 1\ninactive_file 300")
    own.write_text("0::/a/b\n")
    assert machine._groups(tmp_path / "new", own) == [(1000, 400)]
    old = {"memory__limit_in_bytes": 2000, "memory__usage_in_bytes": 50, "memory__stat": "total_inactive_file 10"}
    write(tmp_path / "old" / "memory", **old)
    own.write_text("5:devices:/\n4:memory:/not/there/inside\n0::/\n")
    assert machine._groups(tmp_path / "old", own) == [(2000, 40)]
    write(tmp_path / "old" / "memory", memory__limit_in_bytes=2**63 - 4096)
    assert machine._groups(tmp_path / "old", own) == []
    assert machine._groups(tmp_path / "none", tmp_path / "none") == []


def test_the_tightest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_groups", lambda: [(10_000, 4_000), (5_000, 3_000)])
    assert machine.available_memory() == 2_000
    assert machine._total_memory() == 5_000
    monkeypatch.setattr(machine, "_groups", lambda: [(1_000, 3_000)])
    assert machine.available_memory() == 0


def test_a_system_that_tells_nothing_still_gets_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "")
    assert machine.available_memory() > 2**20
    assert machine.environment()["cpu"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU library's allocator")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """In a process of its own: the same 24 MB taken and freed again cost page faults before, and none after."""
    code = """
import resource, torch
from homespun.train.machine import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(6 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
first = faults()
assert keep_memory()
faults()
print(first, faults())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, out.split())
    assert after < before / 10
