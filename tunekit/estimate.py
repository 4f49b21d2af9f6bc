"""MemoryEstimate and TimeEstimate: named parts with an interval and a reason each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunekit.fields import to_plain

Fidelity = Literal["traced", "coarse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Peak memory of one device, predicted before the run. All sizes in bytes.

    Example:
        >>> m = MemoryEstimate(parts={"weights": 600, "activations": 400}, allocated_bytes=1000, reserved_bytes=1100,
        ...                    device_bytes=1500, interval=(1400, 1700), moment="backward")
        >>> sum(m.parts.values()) == m.allocated_bytes
        True
    """

    parts: Mapping[str, int]
    """Bytes alive at the moment of the peak, by part; they sum to `allocated_bytes`."""
    allocated_bytes: int
    """Peak of tensors alive."""
    reserved_bytes: int
    """Peak that PyTorch's allocator holds, rounding and fragmentation included."""
    device_bytes: int
    """What the device shows as used: reserved, plus the context; on the CPU the process's memory."""
    interval: tuple[int, int]
    """Low and high of `device_bytes`."""
    moment: str
    """When the peak occurs: forward, loss, backward, optimizer; evaluation or saving where that takes more, and on CPU ranks under
    ZeRO-3 dividing."""
    fidelity: Fidelity = "traced"
    """`traced`: from a trace of the step; `coarse`: from sizes, with wide bounds."""
    reasons: tuple[str, ...] = ()
    """What was assumed, and what the interval rests on."""
    trainable_parameters: int = 0
    total_parameters: int = 0
    correction: float = 1.0
    """What the user's calibration multiplied by."""
    reserved_moment: str = ""
    """When the allocator holds most, as `step 3, backward`, where batches of the data's lengths were replayed in their order."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: to_plain(getattr(self, name)) for name in self.__slots__}

    def _repr_html_(self) -> str:
        from tunekit.notebook import memory_html

        return memory_html(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeEstimate:
    """Duration of the run, predicted before it. All durations in seconds.

    Example:
        >>> t = TimeEstimate(step_seconds=0.5, num_steps=100, total_seconds=50.0, interval=(40.0, 75.0),
        ...                  tokens_per_second=2000.0)
        >>> t.step_seconds * t.num_steps == t.total_seconds
        True
    """

    step_seconds: float
    """One optimizer step, accumulation included."""
    num_steps: int
    """Optimizer steps of the run."""
    total_seconds: float
    """The training steps and what comes once before them; without start-up and evaluation."""
    interval: tuple[float, float]
    """Low and high of `total_seconds`."""
    tokens_per_second: float
    """Tokens without padding over all devices."""
    step_flops: float = 0.0
    """Floating-point operations of one optimizer step on one device."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds of one step by part."""
    fidelity: Fidelity = "traced"
    reasons: tuple[str, ...] = ()
    correction: float = 1.0
    """What the user's calibration multiplied by."""
    once_seconds: float = 0.0
    """Of the total, the pass through the frozen layers before the first step, where what they say is kept."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: to_plain(getattr(self, name)) for name in self.__slots__}

    def _repr_html_(self) -> str:
        from tunekit.notebook import time_html

        return time_html(self)
