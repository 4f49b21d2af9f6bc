"""Where a device's kernels differ from what runs on weightless tensors: one small function each, with its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_HALF = (torch.float16, torch.bfloat16)
_MASK_ALIGNMENT = 8
"""Elements to which a mask's rows are padded (`preprocess_mask` in ATen/native/transformers/attention.cpp)."""


_aten = torch.ops.aten

_HOLDS = "_holds_in_every_batch"
"""Mark on tensors whose truth is known without their values."""
_CARRIERS = frozenset(
    {
        _aten._to_copy.default, _aten.slice.Tensor, _aten.view.default, _aten.unsqueeze.default, _aten.expand.default,
        _aten.sum.default, _aten.eq.Scalar, _aten.all.default,
    }
)  # fmt: skip
"""Ops whose answer is marked where their input is."""


def follow_truth(func: Any, args: Any, out: Any) -> None:
    """Marks what holds in every batch, and what is asked of it: masks of ones that a model makes for itself, and
    `x == 0`, by which positions are asked whether a row holds one sequence alone."""
    if (
        func in (_aten.ones.default, _aten.new_ones.default, _aten.ones_like.default)
        or (func is _aten.eq.Scalar and args[1] == 0)
        or (func in _CARRIERS and getattr(args[0], _HOLDS, False))
    ):
        setattr(out, _HOLDS, True)


def read_scalar(args: Any, padded: bool) -> Any:
    """The answer where a model looks at a value.

    Booleans ask masks whether every token is real: so it is, unless the batch holds padding and the mask came with it.
    Numbers are answered with one.
    """
    dtype = args[0].dtype
    if dtype == torch.bool:
        return getattr(args[0], _HOLDS, False) or not padded
    return 1.0 if dtype.is_floating_point else 1


SPECIAL: dict[Any, Callable[[Any, bool], Any]] = {_aten._local_scalar_dense.default: read_scalar}
"""Ops that are answered here and never run."""


def grouped_product(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: Any = None,
) -> torch.Tensor:
    """The output of a product of groups of rows (mixtures of experts); torch's own shape function wants bfloat16."""
    if a.dim() == 2 and b.dim() == 2:
        assert offs is not None
        shape = (offs.shape[0], a.shape[0], b.shape[1])
    elif a.dim() == 2 or b.dim() == 2:
        shape = (a.shape[-2], b.shape[-1])  # type: ignore[assignment]
    else:
        shape = (a.shape[0], a.shape[1], b.shape[2])
    return a.new_empty(shape, dtype=out_dtype or a.dtype)


def marked_positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions of what a mask marks: one a row (encoders with a decoder classify at each row's end token)."""
    return mask.new_empty((mask.shape[0] if mask.dim() > 1 else mask.numel(), mask.dim()), dtype=torch.long)


def unique_runs(x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Runs of equal values: one, as where every row has one end token."""
    counts = x.new_empty((0,), dtype=torch.long)
    return x.new_empty((1,)), counts, counts.new_empty((0,))


def pick(x: torch.Tensor, indices: Any) -> torch.Tensor:
    """Indexing, with masks turned into positions first: how many there are would need values."""
    plain: list[torch.Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            plain += marked_positions(index).unbind(1)
        else:
            plain.append(index)
    return _aten.index.Tensor(x, plain)


SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    _aten.nonzero.default: marked_positions,
    _aten.unique_consecutive.default: unique_runs,
    _aten.index.Tensor: pick,
    **{op.default: grouped_product for op in (getattr(_aten, "_grouped_mm", None),) if op is not None},
}
"""Ops whose shapes are worked out here because torch's shape function refuses them."""


class Attention(TorchFunctionMode):
    """Sends scaled-dot-product attention to the kernel the device would take; meta tensors only know the formula.

    Dropout goes the way that the device's goes.

    Sparse tensors, whose gradients meta tensors do not know, become views of one number: as little memory, and a dense
    gradient behind them as on a device.

    Args:
        device: `cpu` or `cuda`.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.sparse_coo_tensor and len(args) == 3:
            return args[1].sum().expand(args[2])
        if func in _OF_SPARSE and not args[0].is_sparse:
            return _OF_SPARSE[func](args[0])
        if func is F.dropout and self._device == "cuda":
            return _drop(*args, **(kwargs or {}))
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _attend(self._device, *args, **(kwargs or {}))


_OF_SPARSE: dict[Any, Callable[[torch.Tensor], Any]] = {
    torch.Tensor.coalesce: lambda t: t,
    torch.Tensor._nnz: lambda t: 1,
    torch.Tensor.to_dense: lambda t: t.contiguous(),
}
"""What is asked of sparse tensors, answered for the views that stand for them."""


def _drop(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Dropout as CUDA's one kernel does it: a mask of a byte a value (`is_fused_kernel_acceptable` in ATen/native/Dropout.cpp);
    elsewhere the noise takes as much as the values."""
    if not training or p == 0.0:
        return x
    return torch.native_dropout(x, p, True)[0]


def _attend(
    device: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    choice = attention_kernel(device, query, key, value, attn_mask, dropout_p, enable_gqa)
    if choice == "math":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zero, out = query.new_zeros(()), query.new_zeros(())
        attn_mask = torch.where(attn_mask, zero, out)
    ops = _aten
    if choice == "flash":
        return ops._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if choice == "cpu":
        return ops._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    if attn_mask is not None:
        attn_mask = _aligned(attn_mask).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    grad = any(t.requires_grad for t in (query, key, value))
    return ops._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, grad, dropout_p, is_causal, scale=scale
    )[0]


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    length = mask.shape[-1]
    missing = -length % _MASK_ALIGNMENT
    return F.pad(mask, (0, missing))[..., :length] if missing else mask


def attention_kernel(
    device: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    grouped: bool,
) -> str:
    """Which kernel the device takes: `flash`, `efficient`, `cpu` or `math`.

    CUDA: flash for half precision without a mask (grouped heads too), memory-efficient otherwise but not for grouped
    heads, the plain formula for what is left (ATen/native/transformers/cuda/sdp_utils.cpp, default order). CPU: flash
    without dropout, for masks that need no gradient (ATen/native/transformers/sdp_utils_cpp.cpp).
    """
    if device == "cpu":
        plain = dropout_p == 0.0 and not (mask is not None and mask.requires_grad)
        return "cpu" if plain and query.shape[-1] == value.shape[-1] else "math"
    if mask is None and query.dtype in _HALF and query.shape[-1] <= 256 and query.shape[-1] == value.shape[-1]:
        return "flash"
    return "math" if grouped else "efficient"


def scratch_bytes(func: Any, args: Any, device: str) -> int:
    """Bytes that a kernel takes and gives back while it runs, beyond its outputs.

    Backward passes of fused attention on CUDA sum the query's gradient in fp32 beside a value a row, and FlashAttention
    makes gradients of grouped keys and values for every query head first (flash_attn/flash_api.cpp `mha_bwd` and
    mem_eff_attention/kernel_backward.h `workspace_size` in ATen/native/transformers/cuda).
    """
    if device != "cuda" or func not in _ATTENTION_BACKWARD:
        return 0
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    scratch = 4 * batch * heads * length * (width + 1)
    if key.shape[1] != heads:
        scratch += 2 * batch * heads * key.shape[2] * width * key.element_size()
    return scratch


_ATTENTION_BACKWARD = frozenset(
    {
        _aten._scaled_dot_product_flash_attention_backward.default,
        _aten._scaled_dot_product_efficient_attention_backward.default,
    }
)
