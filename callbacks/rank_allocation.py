"""RankAllocation: AdaLoRA's redistribution of ranks, which PEFT leaves to the training loop."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_LOG = logging.getLogger(__name__)


class RankAllocation(TrainerCallback):
    """Calls PEFT's `update_and_allocate` after each optimizer step of a model with AdaLoRA on it.

    Without it AdaLoRA trains all its first ranks to the end. Any other model is left alone. PEFT keeps its running
    measure of importance in memory only, so a resumed run measures anew from where it goes on.

    Example:
        >>> type(RankAllocation()).slug     # Trainer(..., callbacks=[RankAllocation()])
        'rank-allocation'
    """

    slug = "rank-allocation"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says so where the schedule of the ranks is not the length of the run."""
        tuner = _tuner(kwargs.get("model"))
        if tuner is None:
            return
        planned = tuner.peft_config[tuner.trainable_adapter_name].total_step
        if planned != state.max_steps and state.is_world_process_zero:
            said = "AdaLoRA's `total_step` is %d, the run has %d optimizer steps: set `total_step` to as many"
            _LOG.warning(said, planned, state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures and moves; the gradients are still there."""
        tuner = _tuner(kwargs.get("model"))
        if tuner is not None:
            tuner.update_and_allocate(state.global_step)


def _tuner(model: Any) -> Any:
    """PEFT's AdaLoRA inside the model, if it is on it and in training."""
    tuner = getattr(model, "base_model", None)
    return tuner if hasattr(tuner, "update_and_allocate") and hasattr(tuner, "trainable_adapter_name") else None
