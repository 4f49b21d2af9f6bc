"""Whether rows joined into one stay apart in a model: read off the architecture without weights, seen on a live one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunekit.attention import zero_for_values
from tunekit.finding import Finding, error
from tunekit.structure import blocks, class_name, task_model, unwrapped

if TYPE_CHECKING:
    import torch
    from torch import nn

_KERNEL = "tunekit_packing"
_SIZES = (3, 5)
"""Tokens of the two examples that are joined to see whether they stay apart."""
_FIX = "set `packing: false`"
_SLACK = {"torch.float32": 1e-3, "torch.float64": 1e-3}
"""What two kernels may differ by, as a share of the largest logit; in 16 bits a tenth."""


def packing_fault(skeleton: nn.Module) -> Finding | None:
    """Why a language model of this architecture cannot learn from joined rows, or None; found by one run without weights.

    Every block must attend through transformers' attention interface, under a mask that is made of the position ids;
    nothing may carry states from token to token besides; positions must be counted from 0. Architectures with attention
    of their own, with recurrent or convolving layers, or whose masks do not look at position ids are refused.

    Args:
        skeleton: The task's model on the meta device; used up by this.
    """
    from torch import nn

    reason = _reason_by_modules(skeleton, nn)
    if reason is None:
        try:
            attended, masked = _run(skeleton)
        except Exception as e:  # whatever a model's code raises on tensors without values: no promise then
            reason = f"its attention cannot be looked at ({type(e).__name__})"
        else:
            reason = _reason_by_run(skeleton, attended, masked)
    return None if reason is None else _refused(class_name(skeleton), reason)


def _refused(name: str, reason: str) -> Finding:
    return error("packing-architecture", f"`packing` with a `{name}`", reason, _FIX)


def _reason_by_modules(skeleton: nn.Module, nn: Any) -> str | None:
    if "position_ids" not in inspect.signature(type(skeleton).forward).parameters:
        return "it takes no position ids, by which joined rows are told apart"
    if getattr(skeleton.config, "is_encoder_decoder", False):
        return "only decoders read joined rows"
    if any(isinstance(m, nn.Conv1d) for m in skeleton.modules()):
        return "it convolves along the tokens, over the ends of rows too"
    words = skeleton.get_input_embeddings()
    tables = (m for m in skeleton.modules() if isinstance(m, nn.Embedding) and m is not words)
    if any(m.padding_idx is not None and m.num_embeddings != words.num_embeddings for m in tables):
        return "its position table does not begin at 0"
    return None


def _reason_by_run(skeleton: nn.Module, attended: list[nn.Module], masked: bool) -> str | None:
    if not masked:
        return "its attention masks do not look at position ids"
    inside = {id(m) for m in attended}
    layers = [layer for _, stack in blocks(skeleton) for layer in stack]
    if not layers or any(not any(id(m) in inside for m in layer.modules()) for layer in layers):
        return "not every layer of it attends through transformers' attention interface"
    return None


def _run(skeleton: nn.Module) -> tuple[list[nn.Module], bool]:
    """The modules that attended, and whether every one got a mask that was made of the position ids."""
    import torch

    attended: list[nn.Module] = []
    masks: list[Any] = []

    def attend(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, *_: Any, **__: Any) -> Any:
        attended.append(module)
        masks.append(mask)
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    _use(skeleton.eval())
    with _kernel(attend), torch.no_grad(), torch.device("meta"), zero_for_values():
        tokens = torch.zeros(1, sum(_SIZES), dtype=torch.long)
        skeleton(input_ids=tokens, position_ids=torch.zeros_like(tokens), use_cache=False)
    return attended, bool(masks) and all(getattr(mask, "tunekit_apart", False) for mask in masks)


def _use(skeleton: nn.Module) -> None:
    for module in skeleton.modules():
        own = getattr(module, "config", None)
        if own is not None and hasattr(own, "_attn_implementation"):
            own._attn_implementation = _KERNEL
            if getattr(own, "_experts_implementation", None) is not None:
                own._experts_implementation = "batched_mm"  # the other kernels look at values


@contextmanager
def _kernel(attend: Any) -> Iterator[None]:
    """A kernel whose masks say whether transformers told examples apart by position ids when it made them."""
    from transformers import masking_utils
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    told: list[bool] = []
    find = masking_utils.find_packed_sequence_indices

    def seen(position_ids: torch.Tensor) -> torch.Tensor:
        told.append(True)
        return position_ids

    def mask(*_: Any, **__: Any) -> torch.Tensor:
        import torch

        made = torch.empty(1, 1, sum(_SIZES), sum(_SIZES), dtype=torch.bool)
        made.tunekit_apart = bool(told)
        told.clear()
        return made

    ALL_ATTENTION_FUNCTIONS.register(_KERNEL, attend)
    masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(_KERNEL, mask)
    masking_utils.find_packed_sequence_indices = seen
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


def mixing_fault(model: nn.Module) -> Finding | None:
    """Why joined rows do not stay apart in this very model, as it stands with its kernel and method, or None.

    Two examples are joined and answered, once more with another first one, and the second alone. The answers for the second
    must not depend on the first, and be those that it gets alone. Weights in shards are not looked at.
    """
    import torch

    if any(p.is_meta or hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters()):
        return None
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            joined, other, alone = _three_answers(model)
    finally:
        model.train(was)
    slack = _SLACK.get(str(joined.dtype), 0.1) * max(float(alone.abs().max()), 1e-6)
    if float((joined - other).abs().max()) > slack:
        return _refused(
            class_name(task_model(model)), "an example that stands behind another one is answered by that one too"
        )
    if float((joined - alone).abs().max()) > slack:
        return _refused(class_name(task_model(model)), "a joined example is answered otherwise than the same one alone")
    return None


def _three_answers(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    inner = unwrapped(model)
    vocabulary = task_model(inner).get_input_embeddings().num_embeddings
    device = next(inner.parameters()).device
    draw = torch.Generator().manual_seed(0)
    first, second, third = (torch.randint(0, vocabulary, (n,), generator=draw) for n in (*_SIZES, _SIZES[0]))
    positions = torch.cat([torch.arange(n) for n in _SIZES])[None].to(device)

    def ask(ids: torch.Tensor, **more: Any) -> torch.Tensor:
        return inner(input_ids=ids[None].to(device), use_cache=False, **more)["logits"][0, -_SIZES[1] :]

    alone = ask(second, attention_mask=torch.ones(1, _SIZES[1], dtype=torch.long, device=device))
    joined, other = (ask(torch.cat([before, second]), position_ids=positions) for before in (first, third))
    return joined, other, alone
