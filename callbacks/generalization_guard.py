"""GeneralizationGuard: says when a model begins to learn by heart, stops there, and gives the best weights back."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.finding import Finding, warning

_LOG = logging.getLogger(__name__)
_PATIENCE = ((1_000, 5), (10_000, 4), (100_000, 3))
"""Evaluations to wait, up to this many rows: the fewer rows, the noisier the figure."""
_LAST = 2


class GeneralizationGuard(TrainerCallback):
    """Watches the loss on rows that are not trained on, beside the loss on those that are.

    Up to the moment at which it stops the run nothing is changed. It stops after `patience` evaluations without a better
    loss; where the Trainer does not itself load the best checkpoint, it puts the best weights back from a copy of what
    learns (in host memory; not under DeepSpeed or FSDP).

    Args:
        patience: Evaluations without a better loss until it stops; None: by the number of training rows, 5 (below
            1,000) to 2 (above 100,000); 0: never.
        restore: Whether to put the best weights back at the end.

    Example:
        >>> GeneralizationGuard().findings          # Trainer(..., eval_strategy="epoch", callbacks=[GeneralizationGuard()])
        ()

    References:
        Prechelt, Early Stopping - But When?, 1998.
    """

    slug = "generalization-guard"

    def __init__(self, patience: int | None = None, restore: bool = True) -> None:
        self.patience = patience
        self.restore = restore
        self.findings: tuple[Finding, ...] = ()
        """`overfitting`, once, where the losses part."""
        self.history: list[dict[str, float]] = []
        """One entry an evaluation: step, train_loss, eval_loss, gap."""
        self._losses: list[float] = []
        self._waited = 0
        self._best: float | None = None
        self._kept: dict[str, torch.Tensor] = {}
        self._running = False
        self._limit = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Settles how long to wait."""
        self.findings, self.history, self._losses, self._kept = (), [], [], {}
        self._waited, self._best, self._running = 0, None, True
        rows = _rows(kwargs.get("train_dataloader"))
        self._limit = (
            next((n for most, n in _PATIENCE if rows < most), _LAST) if self.patience is None else self.patience
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the loss on the training rows."""
        if isinstance((logs or {}).get("loss"), int | float):
            self._losses.append(float(logs["loss"]))  # type: ignore[index]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compares, keeps the best, stops when nothing has got better for long enough."""
        loss = (metrics or {}).get("eval_loss")
        if not self._running or not isinstance(loss, int | float):
            return
        train = sum(self._losses) / len(self._losses) if self._losses else float("nan")
        self._losses = []
        self.history.append({"step": state.global_step, "train_loss": train, "eval_loss": loss, "gap": loss - train})
        if self._best is None or loss < self._best:
            self._best, self._waited = loss, 0
            self._keep(args, kwargs.get("model"))
        else:
            self._waited += 1
            self._tell(state)
        if self._limit and self._waited >= self._limit:
            control.should_training_stop = True
            if state.is_world_process_zero:
                _LOG.warning(
                    "stopped at step %d: no lower loss on held-out rows in %d evaluations",
                    state.global_step,
                    self._waited,
                )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the best weights back, where the host has not done so and a later evaluation was worse."""
        self._running = False
        model = kwargs.get("model")
        if self._kept and self._waited and isinstance(model, nn.Module):
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if name in self._kept:
                        p.copy_(self._kept[name])
        self._kept = {}

    def _keep(self, args: TrainingArguments, model: Any) -> None:
        kind = str(getattr(getattr(args.distributed_state, "distributed_type", None), "value", ""))
        sharded = kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM")
        if self.restore and not sharded and not args.load_best_model_at_end and isinstance(model, nn.Module):
            learning = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
            self._kept = {n: p.detach().to("cpu", copy=True) for n, p in learning}

    def _tell(self, state: TrainerState) -> None:
        """One sentence where the loss on held-out rows has risen twice while the other one falls."""
        if self.findings or len(self.history) < 3:
            return
        a, b, c = self.history[-3:]
        if a["eval_loss"] < b["eval_loss"] < c["eval_loss"] and c["train_loss"] < a["train_loss"]:
            self.findings = (
                warning(
                    "overfitting", f"from step {a['step']} on the evaluation loss rises ({a['eval_loss']:.4g} to {c['eval_loss']:.4g})"
                    f" while the training loss falls ({a['train_loss']:.4g} to {c['train_loss']:.4g})",
                    "the rows are being learnt by heart", "train fewer epochs, fewer weights or with more rows",
                ),
            )  # fmt: skip
            if state.is_world_process_zero:
                _LOG.warning("%s", self.findings[0])


def _rows(loader: Any) -> int:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return 10**9
