"""The user's own calibration: what was measured on their devices beside what was predicted, in one file.

An estimate is multiplied by the middle of the ratios measured on the same device; `tunekit calibrate` and every finished
run add to them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tunekit.errors import InvalidError
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.fields import to_plain
from tunekit.files import write_json
from tunekit.finding import error
from tunekit.workload import Hardware

SCHEMA = 1
FILE_VARIABLE = "TUNEKIT_CALIBRATION"
"""Environment variable with the file's path; `off`: nothing is read or written."""
_KEPT = 50
"""Measurements of a device and kind that are kept; older ones go."""
_SLACK = 0.03
"""By how much a single run may differ from the next one of the same plan."""
_BELIEVED = {"memory": (0.5, 2.0), "step": (0.2, 5.0)}
"""Ratios outside are another program on the device, or another workload than was described."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One measured figure beside what was predicted for it, before any correction."""

    device: str
    what: str
    """`memory` in bytes, or `step` in seconds."""
    predicted: float
    measured: float
    model: str = ""
    method: str = ""

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted


def path() -> Path | None:
    """Where the calibration lies: by `TUNEKIT_CALIBRATION`, else in the user's configuration folder; None: switched off."""
    named = os.environ.get(FILE_VARIABLE, "")
    if named == "off":
        return None
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "tunekit" / "calibration.json"


def read() -> tuple[Measurement, ...]:
    """What was measured so far, the oldest first.

    Raises:
        InvalidError: `calibration-broken`, the file is not one of ours.
    """
    file = path()
    if file is None or not file.is_file():
        return ()
    try:
        found = json.loads(file.read_text("utf-8"))
        if found["kind"] != "tunekit-calibration" or found["schema"] != SCHEMA:
            raise ValueError("another kind or schema")
        made = tuple(Measurement(**m) for m in found["measurements"])
        return tuple(m for m in made if m.predicted > 0 and m.measured > 0)
    except (ValueError, KeyError, TypeError, OSError) as e:
        why = f"it cannot be read as a calibration ({type(e).__name__}: {e})"
        raise InvalidError(
            error("calibration-broken", str(file), why, "delete it: `tunekit calibrate --forget`")
        ) from None


def add(measurements: Iterable[Measurement]) -> Path | None:
    """Adds measurements to the file, whole or not at all; returns its path, None where it is switched off."""
    file, new = path(), tuple(measurements)
    if file is None or not new:
        return file
    kept = [*read(), *new]
    recent = [m for i, m in enumerate(kept) if sum(_same(m, later) for later in kept[i + 1 :]) < _KEPT]
    return write_json(
        file, {"kind": "tunekit-calibration", "schema": SCHEMA, "measurements": [to_plain(asdict(m)) for m in recent]}
    )


def forget() -> bool:
    """Deletes the file; whether there was one."""
    file = path()
    if file is None or not file.exists():
        return False
    file.unlink()
    return True


def _same(one: Measurement, other: Measurement) -> bool:
    return (one.device, one.what) == (other.device, other.what)


def from_record(record: Mapping[str, Any], device: str, world_size: int = 1) -> tuple[Measurement, ...]:
    """What a finished run's record says of prediction and measurement.

    Args:
        record: As `RunRecord.to_dict()` gives it.
        device: Name of the device it ran on, as `Hardware.name`.
        world_size: Processes of the run; the host's memory is only comparable where there is one.
    """
    if record.get("status") != "finished":
        return ()
    plan = record.get("plan") or {}
    about = {
        "device": device,
        "model": str(plan.get("model", "")),
        "method": str((plan.get("method") or {}).get("kind", "")),
    }
    predicted, measured, found = record["predicted"], record["measured"], []
    memory, seen = predicted.get("memory"), measured.get("memory")
    if memory and seen and memory.get("fidelity") == "traced":
        name = "reserved_bytes" if "reserved_bytes" in seen else "device_bytes"
        if name == "reserved_bytes" or world_size == 1:
            raw = memory[name] / (memory.get("correction") or 1.0)
            found.append(Measurement(what="memory", predicted=raw, measured=seen[name], **about))
    duration, took = predicted.get("duration"), measured.get("duration")
    if duration and took and duration.get("fidelity") == "traced" and took["num_steps"] > 1:
        raw = duration["step_seconds"] / (duration.get("correction") or 1.0)
        found.append(Measurement(what="step", predicted=raw, measured=took["step_seconds"], **about))
    return tuple(m for m in found if m.predicted > 0 and _BELIEVED[m.what][0] <= m.ratio <= _BELIEVED[m.what][1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """What the measurements on a device say of an estimate."""

    factor: float
    low: float
    high: float
    """The span of the measured ratios."""
    count: int


def correction(device: str, what: str) -> Correction | None:
    """The correction for a device, None where nothing was measured there. A broken file corrects nothing."""
    try:
        ratios = [m.ratio for m in read() if m.device == device and m.what == what]
    except InvalidError:
        return None
    if not ratios:
        return None
    return Correction(factor=median(ratios), low=min(ratios), high=max(ratios), count=len(ratios))


def corrected_memory(estimate: MemoryEstimate, hardware: Hardware) -> MemoryEstimate:
    """The estimate with what was measured on this device taken into account; `parts` stay those of the trace.

    Example:
        >>> m = MemoryEstimate(parts={"weights": 10}, allocated_bytes=10, reserved_bytes=10, device_bytes=20,
        ...                    interval=(18, 22), moment="backward")
        >>> corrected_memory(m, Hardware(device="cuda", name="a card nobody has", memory_bytes=100)) == m
        True
    """
    found = correction(hardware.name, "memory")
    if found is None or estimate.fidelity != "traced":
        return estimate
    reserved = max(estimate.allocated_bytes, round(estimate.reserved_bytes * found.factor))
    # The context is the device's own: only what the process takes is corrected. On the CPU both are one.
    outside = estimate.device_bytes - estimate.reserved_bytes if hardware.device == "cuda" else 0
    size = max(reserved, round((estimate.device_bytes - outside) * found.factor) + outside)
    return replace(
        estimate,
        reserved_bytes=reserved,
        device_bytes=size,
        interval=_interval(size, estimate.interval, estimate.device_bytes, found),
        correction=found.factor,
        reasons=(*estimate.reasons, _said(found, hardware.name)),
    )


def corrected_time(estimate: TimeEstimate, hardware: Hardware) -> TimeEstimate:
    """The duration with what was measured on this device taken into account."""
    found = correction(hardware.name, "step")
    if found is None or estimate.fidelity != "traced":
        return estimate
    total = estimate.total_seconds * found.factor
    low, high = (x / estimate.total_seconds for x in estimate.interval) if estimate.total_seconds else (1.0, 1.0)
    return replace(
        estimate,
        step_seconds=estimate.step_seconds * found.factor,
        total_seconds=total,
        once_seconds=estimate.once_seconds * found.factor,
        tokens_per_second=estimate.tokens_per_second / found.factor,
        parts={k: s * found.factor for k, s in estimate.parts.items()},
        interval=(
            total * _end(low, found.low / found.factor, found),
            total * _end(high, found.high / found.factor, found),
        ),
        correction=found.factor,
        reasons=(*estimate.reasons, _said(found, hardware.name)),
    )


def _interval(size: int, before: tuple[int, int], expected: int, found: Correction) -> tuple[int, int]:
    low, high = before[0] / expected, before[1] / expected
    return (
        int(size * _end(low, found.low / found.factor, found)),
        int(size * _end(high, found.high / found.factor, found)),
    )


def _end(usual: float, seen: float, found: Correction) -> float:
    """An end of the interval over the expected figure: what was seen with three runs or more, and a little beyond."""
    if found.count < 3:
        return usual
    return min(1 - _SLACK, seen - _SLACK) if usual < 1 else max(1 + _SLACK, seen + _SLACK)


def _said(found: Correction, device: str) -> str:
    runs = "a measured run" if found.count == 1 else f"{found.count} measured runs"
    return f"multiplied by {found.factor:.2f}, as {runs} on {device} say (`tunekit calibrate --forget` undoes it)"
