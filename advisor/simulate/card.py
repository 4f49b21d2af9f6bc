"""What a device holds beside the tensors, and how far measured runs lie from what was predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit.workload import Hardware

if TYPE_CHECKING:
    from tunekit.advisor.simulate.collated import Shape

MIB = 2**20
_HOST_BYTES = 840 * MIB
"""Resident memory of a Python process that trains nothing yet: torch, transformers, PEFT and datasets loaded, a Trainer made,
thread pools and the first kernels there (torch 2.13 and transformers 5.23 for the CPU, Linux x86-64)."""
_RANK_BYTES = 548 * MIB
"""The same of a process that `tunekit launch` starts: one thread, and freed blocks given back (`MALLOC_MMAP_THRESHOLD_`), so that its heap
has no holes. From what ZeRO-3 ranks hold after their steps, less two and a half times their share of the weights and the states, with a
quarter of a GiB of weights (`benchmarks/zero3_memory.py --gib 0.25`)."""
HEAP_SHARE = 1.2
"""Peak resident over peak allocated memory: holes in the C library's heap. This and the above from peaks of six Trainer runs
(BERT, GPT-2 and T5, full and LoRA, 0.3 to 3.5 GiB allocated), which they meet within 6 %."""
_CONTEXT_BYTES = 500 * MIB
"""CUDA context of a process, its kernels loaded lazily: 400 to 600 MiB on cards since Ampere."""
_WORKSPACE_BYTES = 2 * (4096 * 2 + 16 * 8) * 1024
"""cuBLAS's workspace, one for the forward and one for the backward thread (ATen/cuda/CublasHandlePool.cpp)."""
_HOPPER_WORKSPACE_BYTES = 2 * 32 * MIB
_TRACED_SPREAD = (0.95, 1.06)
"""Of 17 measured runs (PEFT's of a 3B Llama, transformers' of BERT-large) all lie between 0.95 and 1.04 of what was predicted
(`benchmarks/memory_accuracy.py`)."""
_PADDED_SPREAD = (0.95, 1.12)
"""Batches of varying length leave holes in what the allocator holds."""
_CPU_SPREAD = (0.85, 1.15)


def spread(hardware: Hardware, shape: Shape) -> tuple[float, float]:
    """Low and high end over the expected figure."""
    if hardware.device != "cuda":
        return _CPU_SPREAD
    return _PADDED_SPREAD if shape.padded else _TRACED_SPREAD


def workspace_bytes(hardware: Hardware) -> int:
    """What cuBLAS keeps for itself on a card."""
    hopper = any(name in hardware.name.upper() for name in ("H100", "H200", "GH200", "H20", "B200", "B100"))
    return _HOPPER_WORKSPACE_BYTES if hopper else _WORKSPACE_BYTES


def device_bytes(hardware: Hardware, reserved: int, launched: bool = False) -> int:
    """What the device shows for reserved bytes; `launched`: to a process that `tunekit launch` starts on the CPU."""
    host = _RANK_BYTES if launched else _HOST_BYTES
    return reserved + (_CONTEXT_BYTES if hardware.device == "cuda" else host)
