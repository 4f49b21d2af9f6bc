"""Quantised linear layers without weights: bitsandbytes' sizes, its temporaries, and the gradient to the input only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tunekit.task import Task

_BLOCK = 64
"""Values that share one scale in nf4 and fp4 (bitsandbytes `Params4bit.blocksize`)."""
_DOUBLE = 256
"""Scales that share one fp32 scale when the scales are quantised too (`compress_statistics`)."""


class _Dequantised(torch.autograd.Function):
    """y = x W^T with W unpacked for the product and again for the gradient (bitsandbytes `MatMul4Bit`)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, int]
    ) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, x.dtype
        return F.linear(x, packed.new_empty(shape, dtype=x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (packed,) = ctx.saved_tensors
        return grad @ packed.new_empty(ctx.shape, dtype=grad.dtype), None, None, None


class _EightBit(torch.autograd.Function):
    """LLM.int8(): rows quantised to bytes, product in 32-bit integers, W unpacked for the gradient (`MatMul8bitLt`)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, int]
    ) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        half = x.to(torch.float16)
        rows = half.new_empty(half.shape, dtype=torch.int8)
        product = rows.new_empty((*x.shape[:-1], shape[0]), dtype=torch.int32)
        out = product.new_empty(product.shape, dtype=torch.float16).to(x.dtype)
        return out if bias is None else out + bias

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (packed,) = ctx.saved_tensors
        return grad @ packed.new_empty(ctx.shape, dtype=grad.dtype), None, None, None


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is packed; it takes the place of bitsandbytes' layers, which do not run weightless."""

    def __init__(self, source: nn.Linear, scheme: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        values = source.weight.numel()
        packed = -(-values // 2) if scheme != "int8" else values
        dtype = torch.int8 if scheme == "int8" else torch.uint8
        self.weight = nn.Parameter(torch.empty(packed, dtype=dtype, device="meta"), requires_grad=False)
        self.weight.logical_numel = values
        self.bias = source.bias
        self.scheme = scheme
        for name, scale in _scales(scheme, source.weight).items():
            self.register_buffer(name, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = _EightBit if self.scheme == "int8" else _Dequantised
        return product.apply(x, self.weight, self.bias, (self.out_features, self.in_features))


def _scales(scheme: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The scales beside the packed values: a byte and a share of an fp32 a block of 64, or an fp32 a row."""
    if scheme == "int8":
        return {"scales": torch.empty(weight.shape[0], dtype=torch.float32, device="meta")}
    blocks = -(-weight.numel() // _BLOCK)
    return {
        "scales": torch.empty(blocks, dtype=torch.uint8, device="meta"),
        "outer_scales": torch.empty(-(-blocks // _DOUBLE), dtype=torch.float32, device="meta"),
    }


def quantize(model: nn.Module, scheme: str, task: Task) -> None:
    """Packs every linear layer in place but the output layer and the task's head, as a quantised base is loaded."""
    from tunekit.advisor.simulate.record import output_head
    from tunekit.structure import head_modules

    whole = [output_head(model), *(model.get_submodule(name) for name in head_modules(model, task))]
    keep = {id(m) for top in whole if top is not None for m in top.modules()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and id(child) not in keep:
                setattr(parent, name, QuantizedLinear(child, scheme))
