"""The predicted peak against the device."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    if subject.memory is None or not subject.device_bytes:
        return
    low, high = subject.memory.interval
    room = subject.device_bytes
    seen = f"{low / 2**30:.1f} to {high / 2**30:.1f} GiB predicted with {room / 2**30:.1f} GiB on the device"
    fix = "halve `per_device_train_batch_size` and double `gradient_accumulation_steps`, or switch `activation_checkpointing` on"
    if low > room:
        yield error("memory-over-device", seen, "the run ends in an out-of-memory error", fix)
    elif high > room:
        yield warning("memory-near-device", seen, "the longest batch may not fit", fix)


CHECK = Check(
    slug="memory",
    title="The predicted peak is over the device's memory.",
    codes=("memory-over-device", "memory-near-device"),
    look=_look,
)
