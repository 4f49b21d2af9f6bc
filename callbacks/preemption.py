"""Preemption: when the scheduler takes the machine back, a checkpoint first, and an exit code that asks for a restart."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_LOG = logging.getLogger(__name__)
EX_TEMPFAIL = 75
"""sysexits.h: a temporary failure, try again later."""


class Preemption(TrainerCallback):
    """On SIGTERM or SIGUSR1 the run saves after the step that is under way, and the process exits.

    It steps aside where Trainer's own `enable_jit_checkpoint` is on, and outside the main thread, where no signal can be
    taken. With several processes the ranks agree every few steps, so that all save together. The exit comes when
    training ends, from this callback: put it last.

    Args:
        signals: Names of the signals to heed.
        exit_code: What the process exits with after it was preempted; None: training ends and `train()` returns.
        agree_every: Steps between two agreements of several processes.

    Raises:
        SystemExit: with the exit code, after the checkpoint.

    Example:
        >>> Preemption().requested                  # Trainer(..., callbacks=[Preemption()])
        False
    """

    slug = "preemption"

    def __init__(
        self,
        signals: Iterable[str] = ("SIGTERM", "SIGUSR1"),
        exit_code: int | None = EX_TEMPFAIL,
        agree_every: int = 8,
    ) -> None:
        self.signals = tuple(signals)
        self.exit_code = exit_code
        self.agree_every = agree_every
        self.requested = False
        """Whether this process was told to go."""
        self.stopped = False
        """Whether training stopped for it, with a checkpoint."""
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the signals over."""
        self._give_back()
        self.requested = self.stopped = False
        if getattr(args, "enable_jit_checkpoint", False) or threading.current_thread() is not threading.main_thread():
            return
        for number in (getattr(signal, name) for name in self.signals if hasattr(signal, name)):
            self._before[number] = signal.signal(number, self._heed)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves and stops, when told to."""
        if not self._all(args, state):
            return
        control.should_save = control.should_training_stop = True
        self.stopped = state.global_step < state.max_steps
        if state.is_world_process_zero:
            _LOG.warning("told to go: a checkpoint at step %d, then the end", state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the signals back, and exits where the run is unfinished."""
        self._give_back()
        if self.stopped and self.exit_code is not None:
            raise SystemExit(self.exit_code)

    def _heed(self, number: int, frame: Any) -> None:
        self.requested = True

    def _all(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether any process was told to go, as all of them see it."""
        if args.world_size <= 1 or not torch.distributed.is_initialized():
            return self.requested
        if not self._before or state.global_step % self.agree_every:
            return False
        told = torch.tensor([float(self.requested)], device=args.device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return bool(told.item())

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}
