"""OomRecovery: a batch that does not fit is split in two, with the same normalisation, so that the update is the same."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tunekit.errors import RunError
from tunekit.finding import error

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")

WHOLE = -1
"""Stands for the size of what failed and cannot be split."""
_NONE = 2**62

Step = Callable[[Mapping[str, Any], float], "torch.Tensor"]
"""Forward and backward of a part of a batch, whose mean counts by the given share; returns the loss."""


class OomRecovery:
    """Runs the batches of one optimizer step, splitting those that run out of memory; one a Trainer.

    A pass that failed may have left half of its gradients. So everything that the step has gathered is dropped and its
    batches are run again, each split in two until the parts fit. The gradients are the sums that the whole batches would
    have given, up to rounding and to what dropout draws. Sizes that failed are remembered: later ones are split at once.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, int]] = []
        """One entry a failure: the step, and the size (elements of the largest input) that did not fit."""
        self._limit: int | None = None
        self._hopeless: RunError | None = None
        self._step: int | None = None
        self._done: list[tuple[Mapping[str, Any], Step]] = []

    def run(
        self,
        step: int,
        inputs: Mapping[str, Any],
        part: Step,
        drop: Callable[[], None],
        weigh: Callable,
        agree: Callable[[int], int] = int,
    ) -> Any:
        """One batch of a step.

        Args:
            step: The optimizer step that it belongs to.
            inputs: The batch.
            part: What runs a part of it.
            drop: Drops all gradients.
            weigh: How many items the mean of a part is taken over.
            agree: What failed on any rank, given what failed on this one, so that all split together.

        Raises:
            RunError: `out-of-memory-row`, where a single row does not fit.
        """
        if step != self._step:
            self._step, self._done = step, []
        loss, failed = self._attempt(inputs, part, weigh)
        while agreed := agree(failed):
            if agreed == WHOLE:
                raise self._hopeless or _too_large(inputs, RuntimeError("on another rank"))
            self._remember(step, agreed)
            drop()
            for earlier, theirs in [*self._done, (inputs, part)]:
                loss, failed = self._attempt(earlier, theirs, weigh)
                if failed:
                    break
        self._done.append((inputs, part))
        return loss

    def _attempt(self, inputs: Mapping[str, Any], part: Step, weigh: Callable) -> tuple[Any, int]:
        """The loss of a batch in parts that should fit, and 0; or None and the size that did not, WHOLE for one row."""
        parts, total = self._parts(inputs), None
        # Counting waits for the device, so only where there is something to weigh.
        whole = weigh(inputs) if len(parts) > 1 else 1
        for piece in parts:
            failed = 0
            try:
                loss = part(piece, weigh(piece) / whole if len(parts) > 1 else 1.0)
            except RuntimeError as e:
                if not is_out_of_memory(e):
                    raise
                failed = size(piece)
                if halves(piece) is None:
                    failed, self._hopeless = WHOLE, _too_large(piece, e)
            # Out of the handler: the traceback holds the activations of the pass that failed.
            if failed:
                return None, failed
            total = loss if total is None else total + loss
        return total, 0

    def _parts(self, inputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The batch in parts below every size that failed so far."""
        if self._limit is None or size(inputs) < self._limit:
            return [inputs]
        two = halves(inputs)
        return [inputs] if two is None else [p for half in two for p in self._parts(half)]

    def _remember(self, step: int, failed: int) -> None:
        import torch

        self._limit = min(failed, self._limit or failed)
        self.events.append({"step": step, "size": failed})
        _LOG.warning(
            "out of memory at step %d with an input of %d elements: split in two, the update is the same", step, failed
        )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(e: BaseException) -> bool:
    """Whether an error says that the device, or the host, has no memory left.

    Example:
        >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")), is_out_of_memory(ValueError("x"))
        (True, False)
    """
    import torch

    if isinstance(e, torch.OutOfMemoryError):
        return True
    return isinstance(e, RuntimeError) and any(text in str(e) for text in _MESSAGES)


def size(inputs: Mapping[str, Any]) -> int:
    """Elements of the largest tensor of a batch."""
    return max((v.numel() for v in inputs.values() if hasattr(v, "numel")), default=0)


def halves(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A batch as two, along its rows; None for one row, and where tensors do not agree on how many rows there are.

    Example:
        >>> import torch
        >>> [h["x"].tolist() for h in halves({"x": torch.arange(3), "scale": 2.0})]
        [[0, 1], [2]]
    """
    counts = {len(v) for v in inputs.values() if getattr(v, "ndim", 0)}
    other = [v for v in inputs.values() if not getattr(v, "ndim", 0) and isinstance(v, list | tuple | dict)]
    count = counts.pop() if len(counts) == 1 and not other else 0
    if count < 2:
        return None
    middle = (count + 1) // 2
    cut = [slice(0, middle), slice(middle, count)]
    first, second = ({k: v[s] if getattr(v, "ndim", 0) else v for k, v in inputs.items()} for s in cut)
    return first, second


def _too_large(inputs: Mapping[str, Any], e: Exception) -> RunError:
    shapes = {k: tuple(v.shape) for k, v in inputs.items() if hasattr(v, "shape")}
    return RunError(
        error(
            "out-of-memory-row", f"a batch that cannot be split, {shapes}", f"it does not fit ({str(e).splitlines()[0]})",
            "shorten `max_length`, switch activation checkpointing on, or quantize the base",
        )
    )  # fmt: skip


def agreed_by_ranks(device: Any) -> Callable[[int], int]:
    """The smallest size that failed on any rank; 0 where none did. Every rank asks, after each of its batches."""
    import torch

    def agree(failed: int) -> int:
        told = torch.tensor([failed or _NONE], device=device, dtype=torch.int64)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MIN)
        found = int(told.item())
        return 0 if found == _NONE else found

    return agree


def average_gradients(model: Any) -> None:
    """The mean of the ranks' gradients, as DistributedDataParallel makes it while backward runs."""
    import torch
    from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        return
    there = torch.tensor([p.grad is not None for p in learning], device=learning[0].device, dtype=torch.uint8)
    torch.distributed.all_reduce(there, op=torch.distributed.ReduceOp.MAX)
    by_dtype: dict[Any, list[Any]] = {}
    for p, any_rank in zip(learning, there.tolist(), strict=True):
        if any_rank:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            by_dtype.setdefault(p.grad.dtype, []).append(p.grad)
    for gradients in by_dtype.values():
        flat = _flatten_dense_tensors(gradients)
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(mean)


def sharded_out_of_memory(inputs: Mapping[str, Any], e: Exception) -> RunError:
    """Why an out-of-memory error is not recovered from under DeepSpeed and FSDP."""
    return RunError(
        error(
            "out-of-memory-sharded", f"a batch of {size(inputs)} elements does not fit ({str(e).splitlines()[0]})",
            "DeepSpeed and FSDP fix the micro-batch when they start: it cannot be split",
            "halve `per_device_train_batch_size` and double `gradient_accumulation_steps`, and resume",
        )
    )  # fmt: skip
