"""Peak memory of this process while something runs, without synchronising the device and without a reset on the host."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Literal

_STATUS, _PAGES = Path("/proc/self/status"), Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class PeakMemory:
    """Peak between `start` and `stop`.

    On CUDA it is the allocator's own counters, reset at the start. On the CPU it is the process's resident set: the
    kernel's high-water mark where that grew in between, and otherwise the largest of the samples that a thread takes.

    Args:
        device: `cuda` or `cpu`.
        every_seconds: Time between two samples on the CPU.
    """

    def __init__(self, device: Literal["cpu", "cuda"] = "cpu", every_seconds: float = 0.1) -> None:
        self.device = device
        self.every_seconds = every_seconds
        self.start_bytes = 0
        self._sampled_bytes = 0
        self._mark_bytes = 0
        self._done = threading.Event()

    def start(self) -> None:
        """Begins to measure; what was measured before is forgotten."""
        self.stop()
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        self._mark_bytes = _high_water_bytes()
        self.start_bytes = self._sampled_bytes = _resident_bytes()
        self._done = threading.Event()
        args = (weakref.ref(self), self.every_seconds, self._done)
        threading.Thread(target=_keep_sampling, args=args, name="tunekit-peak-memory", daemon=True).start()

    def stop(self) -> None:
        """Ends the sampling; the figures stay."""
        self._done.set()

    def sample(self) -> None:
        """Looks once at the resident set."""
        self._sampled_bytes = max(self._sampled_bytes, _resident_bytes())

    def bytes(self) -> dict[str, int]:
        """The figures so far, under the names of `MemoryEstimate`: `device_bytes`, on CUDA `allocated_bytes` and
        `reserved_bytes` too, on the CPU also `start_bytes`, the resident set at the start."""
        if self.device == "cuda":
            import torch

            free, total = torch.cuda.mem_get_info()
            return {
                "allocated_bytes": torch.cuda.max_memory_allocated(),
                "reserved_bytes": torch.cuda.max_memory_reserved(),
                "device_bytes": total - free,
            }
        self.sample()
        mark = _high_water_bytes()
        peak = max(mark, self._sampled_bytes) if mark > self._mark_bytes else self._sampled_bytes
        return {"device_bytes": peak, "start_bytes": self.start_bytes}


def _keep_sampling(owner: weakref.ref[PeakMemory], every_seconds: float, done: threading.Event) -> None:
    """Samples until told to stop or until nobody holds the owner any more."""
    while not done.wait(every_seconds):
        peak = owner()
        if peak is None:
            return
        peak.sample()
        del peak


def _resident_bytes() -> int:
    # A tenth of what psutil takes: two callbacks ask twenty times a second, beside the thread that trains.
    try:
        return int(_PAGES.read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        import psutil

        return psutil.Process().memory_info().rss


def _high_water_bytes() -> int:
    """The kernel's high-water mark of the resident set; 0 where the system keeps none.

    `getrusage` is no stand-in: over `exec` it keeps the mark of the process that started this one.
    """
    try:
        lines = _STATUS.read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
