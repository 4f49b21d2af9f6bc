"""When nothing fits: how many bytes are missing, and the smallest known hardware on which something would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunekit.advice import Entry
from tunekit.advisor.fit import Simulator, fit, floor_bytes
from tunekit.advisor.observe.hardware import devices, hardware
from tunekit.advisor.propose import make_plan
from tunekit.finding import Finding, error
from tunekit.workload import Hardware, Workload

GIB = 2**30
_COUNTS = (1, 2, 4, 8)
_SERVER_BYTES = 40 * GIB
"""Cards from this size on come several to a machine."""
_TRIES = 4
"""Each try simulates a few steps; an answer that needs more is given in bytes alone."""
_STEP = 1.15
"""After a machine on which nothing fitted the next one tried has at least this much more memory."""


def nothing_fits(workload: Workload, rejected: Sequence[Entry], simulator: Simulator) -> list[Finding]:
    """The finding that takes the place of a ranking, or none where memory is not what is wrong.

    Args:
        workload: The question.
        rejected: Every plan, the one nearest to fitting first.
        simulator: Predicts memory and duration on the hardware that is suggested.
    """
    short = [e for e in rejected if e.memory is not None and any(f.code == "fits-memory" for f in e.findings)]
    if not short:
        return []
    best = short[0]
    assert best.memory is not None
    there, needed = workload.hardware.memory_bytes, best.memory.interval[1]
    return [
        error(
            "nothing-fits",
            f"no plan fits: even {best.plan.method.title} needs {needed / GIB:.1f} GiB of {there / GIB:.1f}",
            f"{(needed - there) / GIB:.1f} GiB are missing, with one row at a time and everything that saves memory",
            _way_out(workload, best, simulator),
        )
    ]


def _way_out(workload: Workload, best: Entry, simulator: Simulator) -> str:
    """The smallest hardware of the catalogue on which the method was simulated to fit."""
    last_bytes = 0.0
    tries = 0
    for spec, there in _machines(workload, best):
        total_bytes = there.memory_bytes * there.total_devices
        if tries == _TRIES:
            break
        if total_bytes < _STEP * last_bytes:
            continue
        tries, last_bytes = tries + 1, total_bytes
        asked = replace(workload, hardware=there)
        found = fit(asked, make_plan(asked, best.plan.method), simulator)
        if found.fits and found.memory is not None:
            used = f"{best.plan.method.title} would use {found.memory.device_bytes / GIB:.0f} GiB of each device"
            return f'the smallest that would do is `hardware="{spec}"` ({used}); or take a smaller model'
    return "take a smaller model, or far more memory"


def _machines(workload: Workload, best: Entry) -> Iterator[tuple[str, Hardware]]:
    """Known cards, alone or several to a machine, that might do: the least memory first."""
    assert best.memory is not None
    weights = floor_bytes(workload, best.plan)
    alone, together = max(weights, 0.95 * best.memory.device_bytes), 1.2 * weights
    specs = [f"{n}x{card}" if n > 1 else card for card in devices() for n in _COUNTS]
    described = [(spec, hardware(spec)) for spec in specs]
    usable = [
        (spec, h)
        for spec, h in described
        if (h.memory_bytes > alone if h.num_devices == 1 else h.memory_bytes >= _SERVER_BYTES)
        and h.memory_bytes * h.num_devices > together
    ]
    yield from sorted(
        usable, key=lambda pair: (pair[1].memory_bytes * pair[1].num_devices, pair[1].num_devices, pair[0])
    )
