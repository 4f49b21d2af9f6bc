"""bitsandbytes quantisation of a frozen base, as the configuration that transformers loads with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit.errors import MissingPackageError
from tunekit.finding import error
from tunekit.plan import Plan

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def quantization_config(plan: Plan) -> BitsAndBytesConfig | None:
    """How transformers should quantise the base while loading it, or None where the plan does not.

    Four bits store blocks of 64 weights with double quantisation of their constants, and compute in the plan's mixed
    precision or dtype (Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023). The head stays whole.

    Raises:
        MissingPackageError: `package-missing`, where bitsandbytes is not installed.
    """
    if plan.quantization is None:
        return None
    compute = {"bf16": "bfloat16", "fp16": "float16"}.get(plan.mixed_precision or "", plan.dtype)
    # What divides weights over ranks sends floats: bytes are stored as such, and never computed with. DeepSpeed turns floats of
    # the model into the dtype that it computes in, which would turn the bytes too.
    divides = plan.sharding in ("zero3", "fsdp", "fsdp-hybrid")
    stored = (compute if plan.sharding == "zero3" else plan.dtype) if divides else "uint8"
    return quantized_as(plan.quantization, compute, stored=stored)


def quantized_as(kind: str, compute: str, field: str = "quantization", stored: str = "uint8") -> BitsAndBytesConfig:
    """The configuration for one kind of quantisation.

    Args:
        kind: `nf4`, `fp4` or `int8`.
        compute: The dtype to compute in, by name.
        field: Where the kind was set, for the message.
        stored: The dtype that packed 4-bit values are kept in, by name.

    Raises:
        MissingPackageError: `package-missing`.
    """
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            error(
                "package-missing", f"`{field}: {kind}`", "it needs bitsandbytes", "pip install 'tunekit-hf[quantization]'"
            )
        )  # fmt: skip
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute),
        bnb_4bit_quant_storage=getattr(torch, stored),
    )
