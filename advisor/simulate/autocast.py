"""Automatic mixed precision on weightless tensors: the device's lists of ops and the cache of cast weights.

Autocast does not exist for the meta device, so a function mode casts what the device's autocast would cast. Lists:
https://docs.pytorch.org/docs/stable/amp.html (CUDA and CPU op-specific behaviour).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LOWER = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention, F.bilinear, torch.addbmm, torch.addmm, torch.addmv,
    torch.addr, torch.baddbmm, torch.bmm, torch.chain_matmul, torch.matmul, torch.mm, torch.mv, torch.einsum,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__, torch.Tensor.bmm, torch.Tensor.mm,
    torch.Tensor.addmm, torch.Tensor.baddbmm,
}  # fmt: skip
"""Ops that autocast runs in half precision."""

_UPPER = {
    F.softmax, F.log_softmax, F.layer_norm, F.group_norm, F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss,
    F.smooth_l1_loss, F.kl_div, F.binary_cross_entropy_with_logits, F.cosine_similarity, F.softplus, F.softmin, F.normalize, torch.softmax,
    torch.log_softmax, torch.exp, torch.log, torch.log1p, torch.expm1, torch.pow, torch.rsqrt, torch.reciprocal, torch.sum,
    torch.prod, torch.cumsum, torch.cumprod, torch.norm, torch.cdist, torch.cosh, torch.sinh, torch.tan,
    torch.Tensor.softmax, torch.Tensor.log_softmax, torch.Tensor.exp, torch.Tensor.log, torch.Tensor.log1p, torch.Tensor.pow,
    torch.Tensor.__pow__, torch.Tensor.rsqrt, torch.Tensor.reciprocal, torch.Tensor.sum, torch.Tensor.prod, torch.Tensor.cumsum,
    torch.Tensor.cumprod, torch.Tensor.norm, torch.Tensor.__rpow__,
}  # fmt: skip
"""Ops that CUDA's autocast runs in fp32."""

_UPPER_CPU = {
    F.cross_entropy,
    F.nll_loss,
    F.mse_loss,
    F.binary_cross_entropy,
    F.l1_loss,
    F.smooth_l1_loss,
    torch.prod,
    torch.cdist,
    torch.Tensor.prod,
}
"""Ops that the CPU's autocast runs in fp32."""

_HALF = (torch.float16, torch.bfloat16)


class Autocast(TorchFunctionMode):
    """Casts the arguments of ops as the device's autocast would while it is entered.

    Args:
        precision: `bf16` or `fp16`.
        device: `cpu` or `cuda`.
    """

    def __init__(self, precision: str, device: str) -> None:
        super().__init__()
        self._upper = _UPPER if device == "cuda" else _UPPER_CPU
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        # fp32 leaves that learn are cast once and kept until autocast is left (ATen/autocast_mode.cpp, cached_cast)
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LOWER:
            return func(*[self._lower(a) for a in args], **{k: self._lower(v) for k, v in kwargs.items()})
        if func in self._upper and kwargs.get("dtype") is None:
            return func(*[_upper(a) for a in args], **kwargs)
        return func(*args, **kwargs)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._cache.clear()

    def _lower(self, x: Any) -> Any:
        if isinstance(x, list | tuple):
            return type(x)(self._lower(i) for i in x)
        if (
            not isinstance(x, torch.Tensor)
            or not x.is_floating_point()
            or x.dtype == torch.float64
            or x.dtype == self._dtype
        ):
            return x
        if not (x.requires_grad and x.is_leaf and x.dtype == torch.float32):
            return x.to(self._dtype)
        if id(x) not in self._cache:
            self._cache[id(x)] = (x, x.to(self._dtype))
        return self._cache[id(x)][1]


def _upper(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in _HALF else x
