"""StepClock: seconds per optimizer step, without what a Trainer does between steps."""

from __future__ import annotations

import time
from typing import Any


class StepClock:
    """Times steps by marks on the host; it never waits for the device.

    A step lasts from the last mark (the step before, or the end of logging, evaluating, saving) to its own end, so
    that fetching its rows counts. The first step warms up kernels and allocators and is kept apart.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.first_seconds = 0.0
        self.later_seconds = 0.0
        self._mark = self._began = time.perf_counter()
        self._ended: float | None = None

    def mark(self) -> None:
        """What happened up to now belongs to no step."""
        self._mark = time.perf_counter()

    def step(self) -> None:
        """A step ended."""
        now = time.perf_counter()
        if self.num_steps:
            self.later_seconds += now - self._mark
        else:
            self.first_seconds = now - self._mark
        self.num_steps += 1
        self._mark = now

    def end(self) -> None:
        """Training ended."""
        self._ended = time.perf_counter()

    def to_dict(self) -> dict[str, Any]:
        """Seconds: a step on average (without the first, where there are others), all steps, and the whole training
        with evaluating and saving."""
        if not self.num_steps:
            return {}
        later = self.num_steps - 1
        ended = self._ended if self._ended is not None else time.perf_counter()
        return {
            "num_steps": self.num_steps,
            "step_seconds": self.later_seconds / later if later else self.first_seconds,
            "first_step_seconds": self.first_seconds,
            "total_seconds": self.first_seconds + self.later_seconds,
            "wall_seconds": ended - self._began,
        }
