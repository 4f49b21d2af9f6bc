"""Estimates are frozen plain values."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tunekit.estimate import MemoryEstimate, TimeEstimate

MEMORY = MemoryEstimate(
    parts={"weights": 600, "activations": 400}, allocated_bytes=1000, reserved_bytes=1100, device_bytes=1500,
    interval=(1400, 1700), moment="backward", reasons=("every row at the longest length",),
)  # fmt: skip
TIME = TimeEstimate(
    step_seconds=0.5, num_steps=100, total_seconds=50.0, interval=(40.0, 75.0), tokens_per_second=2000.0
)


@pytest.mark.parametrize("estimate", [MEMORY, TIME], ids=["memory", "time"])
def test_an_estimate_is_plain_json_with_every_field(estimate: MemoryEstimate | TimeEstimate) -> None:
    plain = json.loads(json.dumps(estimate.to_dict()))
    assert list(plain) == [f.name for f in dataclasses.fields(estimate)]
    assert plain["interval"] == list(estimate.interval)
    assert plain["fidelity"] == "traced"


def test_an_estimate_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MEMORY.allocated_bytes = 3  # type: ignore[misc]
