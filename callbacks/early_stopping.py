"""EarlyStopping: ends a run whose score on held-out rows has not got better for some evaluations."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_LOG = logging.getLogger(__name__)


class EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations without a better score, by the Trainer's own `metric_for_best_model` (else the loss).

    How long nothing has got better is read from the Trainer's log, which checkpoints keep: a run that was killed and resumed
    stops where it would have stopped. (The host's own `EarlyStoppingCallback` begins to count anew.) Up to the moment at which
    it stops the run nothing is changed; which weights remain is for `load_best_model_at_end` to say.

    Args:
        patience: Evaluations without a better score until it stops; None: never.

    Example:
        >>> EarlyStopping(patience=3).patience      # Trainer(..., eval_strategy="epoch", callbacks=[EarlyStopping(patience=3)])
        3

    References:
        Prechelt, Early Stopping - But When?, 1998.
    """

    slug = "early-stopping"

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience
        self.stopped_at: int | None = None
        """The step at which it stopped the run."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins with a clean slate; what counts is in the log."""
        self.stopped_at = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops where the best score lies too far back."""
        if self.patience is None or not 0 < state.global_step < state.max_steps:
            return
        if self.waited(args, state) >= self.patience:
            control.should_training_stop = True
            self.stopped_at = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says that it stopped the run, and why."""
        if self.stopped_at is not None and state.is_world_process_zero:
            waited = self.waited(args, state)
            said = "stopped early at step %d of %d: no better %s in %d evaluation%s"
            _LOG.warning(said, self.stopped_at, state.max_steps, _metric(args), waited, "s" * (waited > 1))

    def waited(self, args: TrainingArguments, state: TrainerState) -> int:
        """Evaluations since the best one."""
        name = f"eval_{_metric(args)}"
        # The host takes a metric without a direction for a loss where it is called so.
        sign = (
            1 if (args.greater_is_better if args.greater_is_better is not None else not name.endswith("loss")) else -1
        )
        scores = {entry["step"]: sign * entry[name] for entry in state.log_history if name in entry and "step" in entry}
        if not scores:
            return 0
        best = min(step for step, score in scores.items() if score == max(scores.values()))
        return sum(step > best for step in scores)


def _metric(args: TrainingArguments) -> str:
    """What is held against its best value, without the host's `eval_`."""
    return (args.metric_for_best_model or "loss").removeprefix("eval_")
