"""Progress: one bar with the time left; plain lines where nobody sees a terminal."""

from __future__ import annotations

import atexit
import sys
import time
from typing import Any, TextIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_QUIET_SECONDS = 30.0
"""Longest silence on a pipe, as far as steps end in between."""
_NO_METRIC = ("runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time", "total_flos")


class Progress(TrainerCallback):
    """Shows a bar with the loss and the time left; on a pipe a plain line each tenth and each half minute; on other
    ranks nothing.

    It stands beside the Trainer's own bar, which `trainer.remove_callback(transformers.ProgressCallback)` takes away.

    Args:
        title: What to call the run.
        stream: Where to show it; None: standard error.

    Example:
        >>> progress = Progress(title="LoRA r=8")   # Trainer(..., callbacks=[progress], disable_tqdm=True)
    """

    slug = "progress"

    def __init__(self, title: str = "training", stream: TextIO | None = None) -> None:
        self.title = title
        self._stream = stream
        self._bar: Any = None
        self._task: Any = None
        self._loss = ""
        self._running = False
        self._began = 0.0
        self._first_step = 0
        self._lines = 0
        self._said = 0.0

    # ------------------------------------------------------------------ events
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Shows the bar at the step that the run begins or goes on from."""
        if not state.is_world_process_zero:
            return
        self._running = True
        self._began = self._said = time.monotonic()
        self._first_step, self._lines, self._loss = state.global_step, 0, ""
        if self._target().isatty():
            self._open(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step further."""
        if not state.is_world_process_zero:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)
        elif state.max_steps and self._due(10 * state.global_step // state.max_steps):
            self._say(self._line(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes over the loss."""
        loss = (logs or {}).get("loss")
        if state.is_world_process_zero and isinstance(loss, int | float):
            self._loss = f"loss {loss:.4g}"
            if self._bar is not None:
                self._bar.update(self._task, loss=self._loss)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """One line with the metrics; what is evaluated after training is returned to whoever asks for it."""
        if state.is_world_process_zero and metrics and self._running:
            self._say(f"epoch {state.epoch or 0:.3g}: {metrics_line(metrics)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the bar away."""
        self._running = False
        self.close()

    # ------------------------------------------------------------------ what is shown
    def close(self) -> None:
        """Ends the bar and gives the cursor back; for a run that failed, since no event tells of that."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            atexit.unregister(self.close)

    def _due(self, tenth: int) -> bool:
        """Whether a plain line is due: a tenth further, or after a silence."""
        due = tenth > self._lines or time.monotonic() - self._said >= _QUIET_SECONDS
        if due:
            self._lines, self._said = tenth, time.monotonic()
        return due

    def _target(self) -> TextIO:
        return self._stream if self._stream is not None else sys.stderr

    def _open(self, state: TrainerState) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[loss]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=Console(file=self._target()),
        )
        self._task = self._bar.add_task(self.title, total=state.max_steps, completed=state.global_step, loss="")
        self._bar.start()
        atexit.register(self.close)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self._target(), flush=True)

    def _line(self, state: TrainerState) -> str:
        elapsed = time.monotonic() - self._began
        done = max(1, state.global_step - self._first_step)
        left = elapsed / done * (state.max_steps - state.global_step)
        loss = f"  {self._loss}" if self._loss else ""
        return (
            f"{self.title}: step {state.global_step}/{state.max_steps}{loss}  {clock(elapsed)} gone, {clock(left)} left"
        )


def metrics_line(metrics: dict[str, Any]) -> str:
    """The metrics of an evaluation as a reader wants them, without what only counts time.

    Example:
        >>> metrics_line({"eval_loss": 0.51234, "eval_accuracy": 0.875, "eval_runtime": 1.2})
        'loss 0.5123, accuracy 0.875'
    """
    names = {k: k.removeprefix("eval_").removeprefix("test_") for k in metrics}
    shown = [
        f"{names[k]} {v:.4g}" for k, v in metrics.items() if isinstance(v, int | float) and names[k] not in _NO_METRIC
    ]
    return ", ".join(shown)


def clock(seconds: float) -> str:
    """Seconds as a clock shows them.

    Example:
        >>> clock(75), clock(3725)
        ('1:15', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
