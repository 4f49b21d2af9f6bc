"""The recorded step through a roofline of the device: seconds a step, hours a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.plan import Plan
from tunekit.workload import DataFacts, Hardware

if TYPE_CHECKING:
    from tunekit.advisor.simulate.trace import Cost

_MATMULS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_grouped_mm"})
_ATTENTION = "_scaled_dot_product"
_LAUNCH_SECONDS = 11e-6
"""Host time of one op in eager PyTorch with a Python model around it; a step cannot be shorter than its launches."""
_MATMUL_SHARE = {"float32": 0.75, "tf32": 0.5, "bfloat16": 0.5, "float16": 0.5}
"""Of the peak rate that the matrix products of a training step reach: high for fp32 without tensor cores, half for tensor
cores at a few thousand tokens (transformers' table for BERT-large on a V100, PEFT's runs of a 3B model on an L40S)."""
_ATTENTION_SHARE = 0.4
"""Of the half-precision peak that fused attention with its backward pass reaches (Dao, FlashAttention-2, 2023: 0.35 to 0.6)."""
_BANDWIDTH_SHARE = 0.65
"""Of the peak bandwidth that the elementwise kernels of a training step reach (as above; copies alone reach 0.8 to 0.9)."""
_CPU_GFLOPS_PER_CORE = 70.0
"""fp32 products on one core of a server CPU with AVX-512 under torch, measured 60 to 85."""
_CPU_HALF_GFLOPS_PER_CORE = 150.0
"""bf16 products where the core has instructions for them, measured 180."""
_CPU_BYTES_PER_SECOND = 14e9
"""What elementwise ops move on one core, measured 4 (fresh memory) to 70 (in its cache); more than four share a memory."""
_CPU_LAUNCH_SECONDS = 8e-6
SUPPLY_BYTES_PER_SECOND = 6e9
"""At which a batch gets what the frozen layers say: written once and copied once in host memory on one core, and over PCIe 4.0 to a card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """What a device can do."""

    flops_per_second: Mapping[str, float]
    """Matrix products by dtype, achieved."""
    attention_share: float
    """Of that rate, what fused attention achieves."""
    bytes_per_second: float
    launch_seconds: float
    overlaps: bool
    """Whether the host runs ahead of the device (CUDA does)."""
    assumed: str | None = None


def roofline(hardware: Hardware) -> Roofline:
    """The roofline of a device of the catalogue; of a middling card where only the memory is known."""
    if hardware.device == "cpu":
        cores = hardware.host_cores or 1
        rate = _CPU_GFLOPS_PER_CORE * 1e9 * cores
        half = _CPU_HALF_GFLOPS_PER_CORE * 1e9 * cores if hardware.bf16 else rate / 4
        return Roofline(
            flops_per_second={"float32": rate, "bfloat16": half, "float16": half}, attention_share=0.6,
            bytes_per_second=_CPU_BYTES_PER_SECOND * min(4, cores), launch_seconds=_CPU_LAUNCH_SECONDS, overlaps=False,
        )  # fmt: skip
    facts = card(hardware.name)
    assumed = None if facts else f"the speed of {hardware.name} is not known: an A10G's is assumed"
    facts = facts or card("A10G")
    assert facts is not None
    rates = {k: v * 1e12 * _MATMUL_SHARE[k] for k, v in facts["peak_tflops"].items()}
    rates.setdefault("bfloat16", rates["float32"])
    return Roofline(
        flops_per_second=rates, attention_share=_ATTENTION_SHARE / _MATMUL_SHARE["float16"],
        bytes_per_second=facts["bandwidth_gbps"] * 1e9 * _BANDWIDTH_SHARE,
        launch_seconds=_LAUNCH_SECONDS, overlaps=True, assumed=assumed,
    )  # fmt: skip


def card(name: str) -> Mapping[str, Any] | None:
    """The catalogue's facts of the card whose name is the longest found in `name`."""
    from tunekit.advisor.observe.hardware import devices

    plain = _plain(name)
    known = {_plain(alias): facts for card, facts in devices().items() for alias in (card, *facts.get("aliases", ()))}
    found = [alias for alias in known if alias in plain]
    return known[max(found, key=len)] if found else None


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()).removeprefix("nvidia").replace("geforce", "")


def seconds_by_moment(ops: Sequence[tuple[str, Cost, int]], line: Roofline) -> dict[str, float]:
    """Seconds that each moment of a recorded step takes."""
    device: dict[str, float] = {}
    host: dict[str, float] = {}
    for moment, cost, count in ops:
        device[moment] = device.get(moment, 0.0) + count * op_seconds(cost, line)
        host[moment] = host.get(moment, 0.0) + count * line.launch_seconds
    if line.overlaps:
        return {m: max(device[m], host[m]) for m in device}
    return {m: device[m] + host[m] for m in device}


def op_seconds(cost: Cost, line: Roofline) -> float:
    """Seconds of one op on the device: as long as its products or its memory traffic take, whichever is longer."""
    moved = cost.num_bytes / line.bytes_per_second
    attends = cost.name.startswith(_ATTENTION)
    if not attends and cost.name not in _MATMULS:
        return moved
    rate = line.flops_per_second.get(cost.dtype, line.flops_per_second["float32"])
    return max(moved, cost.flops / (rate * (line.attention_share if attends else 1.0)))


def num_steps(plan: Plan, data: DataFacts | None, rows_per_example: float = 1.0) -> int | None:
    """Optimizer steps of a run; None where neither the plan nor the data say.

    Args:
        plan: How long it trains.
        data: How many examples there are.
        rows_per_example: Below one where rows are packed.
    """
    if plan.max_steps is not None:
        return plan.max_steps
    if data is None or not data.num_examples:
        return None
    per_epoch = max(1, math.ceil(data.num_examples * rows_per_example / plan.effective_batch_size))
    return max(1, math.ceil(per_epoch * plan.num_train_epochs))
