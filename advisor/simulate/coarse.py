"""The estimate for models that cannot be traced: sizes and rules of thumb, with wide bounds, and it says so."""

from __future__ import annotations

from collections.abc import Callable

from tunekit.advisor.simulate.collated import Shape
from tunekit.advisor.simulate.trace import Cost
from tunekit.estimate import MemoryEstimate
from tunekit.plan import Plan
from tunekit.workload import Hardware, ModelFacts

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TRAINABLE_SHARE = {
    "full": 1.0,
    "partial": 0.2,
    "lora": 0.01,
    "adapters": 0.02,
    "prompts": 0.003,
    "rescaling": 0.001,
    "other": 0.02,
}
"""Share of the parameters that learn, by family, where they cannot be counted."""
_VALUES_PER_TOKEN = 17
"""Activations of a block in units of tokens x hidden size, fused attention (Korthikanti et al., 2022: 34 bytes in fp16)."""
_LOGIT_BYTES = 14
"""A logit in the loss: half-precision and fp32 copies, log-probabilities and gradient."""


def coarse_memory(
    plan: Plan,
    hardware: Hardware,
    model: ModelFacts,
    shape: Shape,
    device_bytes: Callable[[Hardware, int], int],
    spread: tuple[float, float],
    why: str,
) -> MemoryEstimate:
    """Memory from the number of parameters and tokens alone.

    Args:
        plan, hardware, model, shape: What is trained on what.
        device_bytes: What the device shows for reserved bytes.
        spread: Low and high end as shares of the expected value.
        why: What stopped the tracing.
    """
    trainable = int(model.num_parameters * _TRAINABLE_SHARE[plan.method.family])
    size = _BYTES[plan.dtype]
    weight_bits = {"nf4": 4.5, "fp4": 4.5, "int8": 8}.get(plan.quantization or "", 8 * size)
    tokens = shape.batch * shape.choices * (shape.length + shape.target_length)
    kept = 2 + _VALUES_PER_TOKEN / max(1, model.num_layers) if plan.activation_checkpointing else _VALUES_PER_TOKEN
    parts = {
        "weights": int(model.num_parameters * weight_bits / 8),
        "gradients": trainable * size,
        "optimizer": 2 * trainable * (1 if "8bit" in plan.optim else size),
        "activations": int(tokens * model.hidden_size * model.num_layers * kept * size),
        "logits": tokens * model.vocab_size * _LOGIT_BYTES if plan.task in ("causal-lm", "seq2seq") else 0,
    }
    allocated = sum(parts.values())
    device = device_bytes(hardware, allocated)
    return MemoryEstimate(
        parts=parts,
        allocated_bytes=allocated,
        reserved_bytes=allocated,
        device_bytes=device,
        interval=(int(device * spread[0]), int(device * spread[1])),
        moment="backward",
        fidelity="coarse",
        reasons=(f"the model could not be traced ({why}): sizes and rules of thumb",),
        trainable_parameters=trainable,
        total_parameters=model.num_parameters,
    )


def coarse_ops(plan: Plan, model: ModelFacts, shape: Shape) -> tuple[tuple[str, Cost, int], ...]:
    """Six operations a parameter and token for full fine-tuning, four where the base is frozen (Kaplan et al., 2020)."""
    tokens = shape.batch * shape.choices * (shape.length + shape.target_length)
    forward = 2 * model.num_parameters * tokens
    backward = forward * (2 if plan.method.family == "full" else 1)
    moved = model.num_parameters * _BYTES[plan.dtype]
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(plan.mixed_precision or "", plan.dtype)
    return (("forward", Cost("mm", forward, moved, dtype), 1), ("backward", Cost("mm", backward, moved, dtype), 1))
