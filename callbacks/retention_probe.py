"""RetentionProbe: how far a model drifts on general text while it learns something special."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.finding import Finding, warning
from tunekit.structure import task_model

_LOG = logging.getLogger(__name__)

TEXTS = (
    "Water freezes at zero degrees Celsius and boils at one hundred degrees at sea level.",
    "The train left the station a few minutes late, but it arrived on time.",
    "She opened the window, looked at the garden, and decided to stay at home.",
    "A triangle has three sides, and the sum of its angles is one hundred and eighty degrees.",
    "Most birds build nests in spring and raise their young before the summer ends.",
    "To make bread you need flour, water, salt and yeast, and some patience.",
    "The city council met on Tuesday to discuss the new bridge over the river.",
    "He read the letter twice, folded it, and put it back into the drawer.",
)
"""Plain sentences that any model pretrained on English finds likely."""


class RetentionProbe(TrainerCallback):
    """Measures the loss per token on general text before training, at each evaluation and at the end.

    Only for models that write text, and where the Trainer has a tokenizer; else it stays idle. No random number is drawn
    and no weight is touched.

    Args:
        texts: What to measure on; None: eight plain English sentences.
        most: The rise in nats per token from which it warns.

    Example:
        >>> RetentionProbe().drift                  # Trainer(..., callbacks=[RetentionProbe()])
        0.0
    """

    slug = "retention-probe"

    def __init__(self, texts: Iterable[str] | None = None, most: float = 0.5) -> None:
        self.texts = TEXTS if texts is None else tuple(texts)
        self.most = most
        self.history: list[dict[str, float]] = []
        """One entry a measurement: step, loss (nats per token), drift against the first."""
        self.findings: tuple[Finding, ...] = ()
        """`retention-drift`, once."""
        self._rows: list[torch.Tensor] = []
        self._running = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures the model as it came."""
        self.history, self.findings, self._rows, self._running = [], (), [], True
        model, tokenizer = kwargs.get("model"), kwargs.get("processing_class")
        if isinstance(model, nn.Module) and tokenizer is not None and _writes(model):
            self._rows = [torch.tensor([tokenizer(t)["input_ids"]]) for t in self.texts]
            self._rows = [r for r in self._rows if r.shape[1] > 1]
            self._measure(state, model)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measures again."""
        if self._running:
            self._measure(state, kwargs.get("model"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures what came out."""
        self._measure(state, kwargs.get("model"))
        self._running = False

    @property
    def drift(self) -> float:
        """Nats per token that general text has become less likely by; 0 before it was measured twice."""
        return self.history[-1]["drift"] if self.history else 0.0

    def _measure(self, state: TrainerState, model: Any) -> None:
        if not self._rows or not isinstance(model, nn.Module):
            return
        loss = _loss(model, self._rows)
        first = self.history[0]["loss"] if self.history else loss
        self.history.append({"step": state.global_step, "loss": loss, "drift": loss - first})
        if not self.findings and not loss - first <= self.most:
            self.findings = (
                warning(
                    "retention-drift", f"general text costs {loss:.3g} nats a token at step {state.global_step}, {first:.3g} before",
                    "what the model could do before is being lost", "lower the learning rate, train fewer weights, or mix general text in",
                ),
            )  # fmt: skip
            if state.is_world_process_zero:
                _LOG.warning("%s", self.findings[0])


def _writes(model: nn.Module) -> bool:
    inner = task_model(model)
    able = getattr(inner, "can_generate", None)
    return bool(able and able()) and not getattr(inner.config, "is_encoder_decoder", False)


def _loss(model: nn.Module, rows: list[torch.Tensor]) -> float:
    """Mean negative log-likelihood of the next token, in nats."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with _still(model):
        for ids in (r.to(device) for r in rows):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :].float()
            total += nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
    return total / count if count else math.nan


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode without gradients or random numbers; every module as it was afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
