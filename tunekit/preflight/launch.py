"""How the model lies on devices against how the processes were started."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, error
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    spread = getattr(subject.task_model, "hf_device_map", None) or {}
    if len({*map(str, spread.values())}) > 1 and subject.args.world_size > 1:
        yield error(
            "device-map-launcher", f"a model spread over {len({*spread.values()})} devices in {subject.args.world_size} processes",
            "every process takes all devices, and they train in each other's memory",
            'load with `device_map=None`, or start one process without a launcher',
        )  # fmt: skip
    quantized = getattr(subject.task_model, "is_quantized", False)
    learns = all(p.requires_grad for p in subject.model.parameters() if p.is_floating_point())
    if quantized and learns and subject.peft_config is None:
        yield error(
            "quantized-full", "a quantised base without an adapter", "quantised weights take no gradient",
            "attach LoRA, or load the model unquantised",
        )  # fmt: skip
    yield from _storage(subject, quantized)


def _storage(subject: Subject, quantized: bool) -> Iterator[Finding]:
    config = getattr(subject.config, "quantization_config", None)
    storage = str(getattr(config, "bnb_4bit_quant_storage", None) or "").removeprefix("torch.")
    name = str(getattr(subject.args.distributed_state, "distributed_type", ""))
    zero3 = "zero3" in str(getattr(subject.args, "deepspeed", "") or "").lower() or _stage(subject) == 3
    if quantized and storage in ("uint8", "int8") and (name.endswith("FSDP") or zero3):
        yield error(
            "quantized-storage", f"4-bit weights stored as {storage} under {'ZeRO-3' if zero3 else 'FSDP'}",
            "shards are cut from one flat tensor, so the storage must have the dtype of the other weights",
            "set `bnb_4bit_quant_storage=torch.bfloat16` to the dtype the model is loaded in",
        )  # fmt: skip


def _stage(subject: Subject) -> int | None:
    plugin = getattr(subject.args, "deepspeed_plugin", None)
    return getattr(plugin, "zero_stage", None)


CHECK = Check(
    slug="launch",
    title="device_map under a launcher; quantised bases that cannot be trained or sharded so.",
    codes=("device-map-launcher", "quantized-full", "quantized-storage"),
    look=_look,
)
