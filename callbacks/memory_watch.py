"""MemoryWatch: the measured peak memory of a training run beside the predicted one."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.callbacks._peak import PeakMemory
from tunekit.estimate import MemoryEstimate

_LOG = logging.getLogger(__name__)


class MemoryWatch(TrainerCallback):
    """Measures the peak memory of training, and says so when it exceeds what was predicted.

    On CUDA these are the allocator's peaks (read once, at the end: no synchronisation), on the CPU the resident set
    of the process. Changes nothing in the run.

    Args:
        predicted: What `tunekit.estimate_memory` said; None only measures.

    Example:
        >>> watch = MemoryWatch()
        >>> watch.to_dict()["measured"] is None     # until a Trainer with `callbacks=[watch]` has run
        True
    """

    slug = "memory-watch"

    def __init__(self, predicted: MemoryEstimate | None = None) -> None:
        self.predicted = predicted
        self.measured: dict[str, int] | None = None
        """Sizes in bytes under the names of `MemoryEstimate`; None before the run."""
        self._peak: PeakMemory | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins to measure."""
        self._peak = PeakMemory("cuda" if args.device.type == "cuda" else "cpu")
        self._peak.start()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps the figures and logs the comparison."""
        if self._peak is None:
            return
        self._peak.stop()
        self.measured = self._peak.bytes()
        if state.is_world_process_zero:
            _LOG.log(logging.WARNING if self.exceeded else logging.INFO, "%s", self)

    @property
    def exceeded(self) -> bool:
        """Whether the measured peak lies above the predicted interval."""
        if self.measured is None or self.predicted is None:
            return False
        return self.measured["device_bytes"] > self.predicted.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """Predicted and measured, as plain values."""
        predicted = self.predicted.to_dict() if self.predicted is not None else None
        return {"predicted": predicted, "measured": self.measured}

    def __str__(self) -> str:
        if self.measured is None:
            return "peak memory: not measured yet"
        text = f"peak memory: {_gib(self.measured['device_bytes'])} measured"
        if self.predicted is not None:
            low, high = self.predicted.interval
            text += f", {_gib(self.predicted.device_bytes)} predicted ({_gib(low)} to {_gib(high)})"
        return text


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
