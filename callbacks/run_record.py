"""RunRecord: one JSON record a run: what was planned, what was predicted, what was measured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.callbacks import _facts, _fusion
from tunekit.callbacks._peak import PeakMemory
from tunekit.callbacks._steps import StepClock
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.files import finite, write_json
from tunekit.plan import Plan
from tunekit.preflight import digest

SCHEMA = 1
FILE_NAME = "record.json"


class RunRecord(TrainerCallback):
    """Writes `record.json`: plan, versions, rows, losses and metrics by step, predicted and measured memory and time.

    The first process writes it, whole or not at all, at every save and at the end of training, and again when the
    Trainer evaluates afterwards. It holds no host name; the home folder is written as `~`. Of an `AdapterFusion` it holds
    how much each layer listens to each adapter at the end.

    Args:
        folder: Where to; None: the Trainer's `output_dir`.
        plan: The plan that is run; without one the Trainer's own settings are kept.
        memory: What `tunekit.estimate_memory` predicted.
        duration: What `tunekit.estimate_time` predicted.

    Example:
        >>> record = RunRecord()                    # Trainer(..., callbacks=[record]).train()
        >>> record.to_dict()["status"]
        'not started'
    """

    slug = "run-record"

    def __init__(
        self,
        folder: str | Path | None = None,
        plan: Plan | None = None,
        memory: MemoryEstimate | None = None,
        duration: TimeEstimate | None = None,
    ) -> None:
        self.folder = Path(folder) if folder is not None else None
        self._clock = StepClock()
        self._peak: PeakMemory | None = None
        self._record: dict[str, Any] = {
            "kind": "tunekit-run",
            "schema": SCHEMA,
            "status": "not started",
            "plan": _facts.without_home(plan.to_dict()) if plan is not None else None,
            "logs": [],
            "evaluations": [],
            "final": None,
            "predicted": None,
            "measured": {"memory": None, "duration": None},
        }
        self.expect(memory, duration)

    def expect(self, memory: MemoryEstimate | None, duration: TimeEstimate | None) -> None:
        """Puts what was predicted beside what is measured; a prediction depends on the plan alone, so it may come late."""
        self._record["predicted"] = {
            "memory": memory.to_dict() if memory is not None else None,
            "duration": duration.to_dict() if duration is not None else None,
        }

    # ------------------------------------------------------------------ events
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes down what is known before the first step."""
        self.folder = self.folder or Path(args.output_dir or ".")
        model, loader = kwargs.get("model"), kwargs.get("train_dataloader")
        self._record |= {
            "status": "running",
            "versions": _facts.versions(),
            "environment": _facts.environment(args.device.type, args.world_size),
            "data": {
                "train_rows": _facts.length(loader),
                "fingerprint": digest(getattr(loader, "dataset", None)),
            },
            "parameters": _facts.parameters(model) if model is not None else {},
            "arguments": _facts.without_home(_facts.arguments(args)) if self._record["plan"] is None else None,
            "best": None,
        }
        self._record["steps"] = {
            "planned": state.max_steps,
            "resumed_at": state.global_step,
            "done": state.global_step,
            "kept": None,
        }
        self._peak = PeakMemory("cuda" if args.device.type == "cuda" else "cpu")
        self._peak.start()
        self._clock = StepClock()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What came before belongs to no step."""
        self._clock.mark()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Times the step."""
        self._clock.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the loss and the learning rate of the step."""
        if logs and "loss" in logs:
            self._record["logs"].append({"step": state.global_step, "epoch": state.epoch, **_numbers(logs)})
        self._clock.mark()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the metrics. What is evaluated after training is `final`, under the step whose weights were kept."""
        entry = {"step": state.global_step, "epoch": state.epoch, **_numbers(metrics or {})}
        self._record.setdefault("data", {})["eval_rows"] = _facts.length(kwargs.get("eval_dataloader"))
        if self._record["status"] == "finished":
            kept = self._record["steps"]["kept"]
            same = next((e for e in self._record["evaluations"] if e["step"] == kept), entry)
            self._record["final"] = entry | {"step": kept, "epoch": same["epoch"]}
            self._write(state)
        else:
            self._record["evaluations"].append(entry)
        self._clock.mark()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes what is known so far."""
        self._measure(args, state)
        self._write(state)
        self._clock.mark()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the closing figures and writes."""
        self._clock.end()
        if self._peak is not None:
            self._peak.stop()
        self._measure(args, state)
        self._record["steps"]["kept"] = _kept_step(args, state)
        # On all ranks: a model in pieces only runs when all of them run it.
        loaders = [kwargs.get("eval_dataloader"), kwargs.get("train_dataloader")]
        loader, model = next((x for x in loaders if x is not None), None), kwargs.get("model")
        if model is not None and (read := _fusion.shares(model, loader, args.per_device_eval_batch_size)):
            self._record["fusion"] = read
        self._record["status"] = "finished"
        self._write(state)

    # ------------------------------------------------------------------ the record
    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values; a copy."""
        return copy.deepcopy(finite(self._record))

    def add(self, state: TrainerState, **values: Any) -> None:
        """Puts further plain values into the record, such as `samples`, and writes it.

        Args:
            state: The Trainer's, which knows the first process.
            **values: By name.
        """
        self._record |= values
        self._write(state)

    def _measure(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._peak is None:
            return
        self._record["measured"] = {"memory": self._peak.bytes(), "duration": self._clock.to_dict() or None}
        self._record["steps"]["done"] = state.global_step
        if state.best_metric is not None:
            self._record["best"] = {
                "metric": args.metric_for_best_model,
                "value": state.best_metric,
                "step": getattr(state, "best_global_step", None),
            }

    def _write(self, state: TrainerState) -> None:
        if state.is_world_process_zero and self.folder is not None:
            write_json(self.folder / FILE_NAME, self._record)


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """What is a number, without the Trainer's own `epoch`, which stands beside it already."""
    return {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != "epoch"}


def _kept_step(args: TrainingArguments, state: TrainerState) -> int:
    """Of which step the weights are when training has ended: the Trainer has loaded the best checkpoint by then, where it
    was told to and saved one; its own `best_global_step` may be of an evaluation after which nothing was saved."""
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        return int(Path(state.best_model_checkpoint).name.rpartition("-")[2])
    return state.global_step
