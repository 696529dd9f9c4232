"""Figures of the server in the text format of Prometheus."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from homespun.serve.scheduler import Figures

BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)  # seconds

Sample = tuple[Mapping[str, str], float]
"""Labels and a value."""

OF_MODELS = {
    "running": ("gauge", "Texts that are being read or written."),
    "waiting": ("gauge", "Texts that wait for a row."),
    "finished": ("counter", "Texts that came to their end."),
    "cancelled": ("counter", "Texts that were given up before their end."),
    "prompt_tokens": ("counter", "Tokens of prompts."),
    "embedded_tokens": ("counter", "Tokens of texts that became vectors."),
    "written_tokens": ("counter", "Tokens that were written."),
}


class Metrics:
    """Counts requests by route and status, and how long they took by route."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests[route, str(status)] += 1
        buckets = self._buckets.setdefault(route, [0] * (len(BOUNDS) + 1))
        buckets[bisect_left(BOUNDS, seconds)] += 1
        self._seconds[route] += seconds

    def text(self, figures: Mapping[str, Figures], connections: int) -> str:
        """Everything, and the figures of each model."""
        lines = [*self._of_requests(), *self._of_latency()]
        for name, (kind, meaning) in OF_MODELS.items():
            samples = [({"model": model}, getattr(of, name)) for model, of in figures.items()]
            lines += _family(f"homespun_{name}{'_total' if kind == 'counter' else ''}", kind, meaning, samples)
        lines += _family("homespun_connections", "gauge", "Open connections.", [({}, connections)])
        lines += _of_process()
        return "\n".join(lines) + "\n"

    def _of_requests(self) -> Iterator[str]:
        samples = [({"route": route, "status": status}, count) for (route, status), count in self._requests.items()]
        yield from _family("homespun_requests_total", "counter", "Requests that were answered.", samples)

    def _of_latency(self) -> Iterator[str]:
        name = "homespun_request_seconds"
        yield from _family(name, "histogram", "From a request's head to the end of its answer.", [])
        for route, buckets in self._buckets.items():
            total = 0
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), buckets, strict=True):
                total += count
                yield _line(f"{name}_bucket", {"route": route, "le": bound}, total)
            yield _line(f"{name}_sum", {"route": route}, self._seconds[route])
            yield _line(f"{name}_count", {"route": route}, total)


def _of_process() -> Iterator[str]:
    yield from _family("process_threads", "gauge", "Threads of Python.", [({}, threading.active_count())])
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd"))
    except OSError:  # only Linux tells
        return
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    yield from _family("process_resident_memory_bytes", "gauge", "Memory of the process.", [({}, resident)])
    yield from _family("process_open_fds", "gauge", "Open files.", [({}, files)])


def _family(name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    yield from (_line(name, labels, value) for labels, value in samples)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{told}}} {value}" if told else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
