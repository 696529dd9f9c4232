"""What this machine is, and how much memory a run may have."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import torch

import homespun
from homespun.train.memory import human_bytes

_MALLOC = {-3: 2**25, -1: 2**31 - 1}  # M_MMAP_THRESHOLD at its maximum, M_TRIM_THRESHOLD (malloc.h)
_UNLIMITED = 2**60  # version 1 of the control groups writes a number like this for "no limit"


def environment() -> dict[str, Any]:
    """What a result depends on besides the recipe: versions, processor, threads, memory, devices."""
    total = _total_memory()
    found = {
        "homespun": homespun.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory": human_bytes(total) if total else "unknown",
        "device": "cpu",
    }
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found |= {"device": ", ".join(names), "cuda": torch.version.cuda or torch.version.hip}
    return found


def keep_memory() -> bool:
    """Lets this process keep what it frees, instead of giving it back and taking it again page by page; returns whether
    that could be set. For training, whose steps need the same memory again and again, on Linux with the GNU library.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, another library
        return False
    return all(set_option(option, value) for option, value in _MALLOC.items())


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(device: torch.device | None = None) -> int:
    """Bytes that can still be had: on a GPU what is free there, else main memory within the limits of a container.

    Where the system does not tell what is free, half of all memory.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _meminfo("MemAvailable")
    if free is None:
        free = (_total_memory() or 8 * 2**30) // 2
    room = _group_room()
    return free if room is None else max(0, min(free, room))


def _total_memory() -> int | None:
    """All memory of the machine, or of the container this process runs in."""
    total = _meminfo("MemTotal")
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit, _ in _groups()]
    return min([total, *limits]) if total is not None else None


def _group_room() -> int | None:
    """What the tightest control group leaves; none without a limit. Its file cache can be taken back, so it is free."""
    rooms = [limit - used for limit, used in _groups()]
    return min(rooms) if rooms else None


def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """Limit and use, in bytes, of each control group around this process that has a limit (Linux; versions 1 and 2)."""
    found = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, names = (root, _NEW) if not controllers else (root / "memory", _OLD)
        place = base / path.strip("/")
        for folder in [place, *place.parents]:  # inside a container the path may not be there; its root then is
            if limit := _group(folder, names):
                found.append(limit)
            if folder == base:
                break
    return found


_NEW = ("memory.max", "memory.current", "inactive_file")
_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _group(folder: Path, names: tuple[str, str, str]) -> tuple[int, int] | None:
    limit, used = _read(folder / names[0]).strip(), _read(folder / names[1]).strip()
    if not limit.isdigit() or not used.isdigit() or int(limit) >= _UNLIMITED:
        return None
    statistics = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    return int(limit), int(used) - int(statistics.get(names[2], 0))


def _meminfo(key: str) -> int | None:
    """A line of Linux's /proc/meminfo, in bytes."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _processor() -> str:
    """The name of the processor, as the system tells it."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("model name", "Hardware", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str:
    """The text of a system file; nothing where this system has no such file."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
