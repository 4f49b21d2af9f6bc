"""Rules out what does not fit the device."""

from __future__ import annotations

from tunekit.advisor.rule import GIB, Question, Rule, example
from tunekit.finding import Finding, error

_SOURCE = "One training step of this plan, traced without weights; the high end of the interval is compared"


def _judge(q: Question) -> Finding | None:
    if q.memory is None or q.memory.interval[1] <= q.workload.hardware.memory_bytes:
        return None
    there, needed = q.workload.hardware.memory_bytes, q.memory.interval[1]
    size = q.plan.per_device_train_batch_size
    return error(
        "fits-memory",
        f"needs {needed / GIB:.1f} GiB of {there / GIB:.1f} ({max(needed - there, GIB // 10) / GIB:.1f} missing)",
        f"the peak is in {q.memory.moment}, already with {size} row{'s' if size > 1 else ''} a device",
        "shorten `max_length`, take a method that trains less, or more memory",
        _SOURCE,
    )


RULE = Rule(
    slug="fits-memory",
    title="A plan whose predicted memory exceeds the device is ruled out",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("full", device_gib=24, needed_gib=25),),
    silent=lambda: (example("full", device_gib=24, needed_gib=23),),
)
