"""Throughput: tokens a second without padding, floating-point operations, their share of the device, time left."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.callbacks._facts import values_of

_LOG = logging.getLogger(__name__)


class Throughput(TrainerCallback):
    """Counts the real tokens of every training batch and says at each log how fast they go.

    The count stays on the device and is read when the Trainer logs, which waits for the device anyway. A step costs two
    multiplications and additions a weight forward, two for the gradients of activations, and two more a weight that
    learns; attention's own products are left out, so the share of the device's peak (MFU) is a little low.

    Args:
        peak_flops: Operations a second that one device can do at best, in the dtype of the computation; None: no MFU.

    Example:
        >>> Throughput().to_dict()                  # Trainer(..., callbacks=[Throughput()])
        {'tokens': 0, 'seconds': 0.0}
    """

    slug = "throughput"

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.history: list[dict[str, float]] = []
        """One entry a log: step, tokens_per_second, flops_per_second, mfu (with `peak_flops`), seconds_left."""
        self._hook: Any = None
        self._count: torch.Tensor | int = 0
        self._tokens = 0
        self._seconds = 0.0
        self._mark: float | None = None
        self._step = 0
        self._token_flops = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins to count at the model's door."""
        self._close()
        self._count, self._tokens, self._seconds, self._mark, self._step = 0, 0, 0.0, None, state.global_step
        self.history = []
        model = kwargs.get("model")
        if isinstance(model, nn.Module):
            self._token_flops = token_flops(model)
            self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The clock runs while steps run."""
        if self._mark is None:
            self._mark = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Reads the count and says how fast it went since the last log."""
        if self._mark is None or state.global_step <= self._step:
            return
        tokens = int(self._count) * max(1, args.world_size)
        now = time.perf_counter()
        self._note(args, state, tokens, now - self._mark)
        self._count, self._mark, self._step = 0, now, state.global_step

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What an evaluation takes belongs to no step."""
        self._mark, self._count = None, 0
        self._step = state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Nor what a save takes."""
        self._mark, self._count = None, 0
        self._step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the model as it came."""
        self._close()

    def to_dict(self) -> dict[str, float]:
        """Tokens and seconds that were measured, and the rate over all of them."""
        rate = {"tokens_per_second": self._tokens / self._seconds} if self._seconds else {}
        return {"tokens": self._tokens, "seconds": self._seconds, **rate}

    def _note(self, args: TrainingArguments, state: TrainerState, tokens: int, seconds: float) -> None:
        self._tokens += tokens
        self._seconds += seconds
        steps = state.global_step - self._step
        entry = {
            "step": state.global_step,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": tokens / seconds * self._token_flops,
            "seconds_left": max(0, state.max_steps - state.global_step) * seconds / steps,
        }
        if self.peak_flops:
            entry["mfu"] = entry["flops_per_second"] / (self.peak_flops * max(1, args.world_size))
        self.history.append(entry)
        if state.is_world_process_zero:
            _LOG.info("%.0f tokens a second, %.0f s left", entry["tokens_per_second"], entry["seconds_left"])

    def _see(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Adds a batch's tokens, on the device; evaluation batches do not count."""
        if not model.training:
            return
        mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids", args[0] if args else None)
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            self._count = self._count + mask.detach().sum()
        elif isinstance(ids, torch.Tensor):
            self._count = self._count + ids.numel()

    def _close(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def token_flops(model: nn.Module) -> int:
    """Floating-point operations of a training step for one token; embeddings that are only looked up do not count."""
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    tables -= {id(p) for p in output.parameters()} if isinstance(output, nn.Module) else set()
    sizes = [(values_of(p), p.requires_grad) for p in model.parameters() if id(p) not in tables]
    return 4 * sum(n for n, _ in sizes) + 2 * sum(n for n, learns in sizes if learns)
