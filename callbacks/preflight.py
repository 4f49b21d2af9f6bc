"""Preflight: the checks of `tunekit.check`, run by any Trainer before its first step."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.errors import RunError
from tunekit.finding import Finding
from tunekit.preflight import inspect, of_events

_LOG = logging.getLogger(__name__)


class Preflight(TrainerCallback):
    """Says what the run is about to get wrong, and stops it where it cannot come to anything.

    It sees what a callback is given: model, optimizer, rows and collator, but no metrics; `tunekit.check(trainer)` sees
    those too. Reading rows changes nothing in the run, unless the dataset itself counts how often it is read.

    Args:
        stop: Whether a finding of severity `error` stops the run; else it is only logged.

    Raises:
        RunError: every finding of severity `error`, before the first step.

    Example:
        >>> Preflight().findings                    # Trainer(..., callbacks=[Preflight()])
        ()
    """

    slug = "preflight"

    def __init__(self, stop: bool = True) -> None:
        self.stop = stop
        self.findings: tuple[Finding, ...] = ()
        """What was found, errors first; empty before the run."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks; logs on the first process; stops on all."""
        if kwargs.get("model") is None:
            return
        self.findings = inspect(of_events(args, state, **kwargs))
        errors = tuple(f for f in self.findings if f.severity == "error")
        for finding in self.findings if state.is_world_process_zero else ():
            _LOG.log(logging.ERROR if finding.severity == "error" else logging.WARNING, "%s", finding)
        if errors and self.stop:
            raise RunError(*errors)
