"""LossGuard: a loss that is no number, jumps, stays flat, or moves nothing: seen early, named, and stopped."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from typing import Any, Literal

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.finding import Finding, error, warning

_LOG = logging.getLogger(__name__)
_WINDOW, _LONG = 10, 30


class LossGuard(TrainerCallback):
    """Names the first batch whose loss is no number, and the first weight or gradient that is none.

    The Trainer itself hides such losses from its log (`logging_nan_inf_filter`). Here every batch's loss is kept on the
    device and read when the Trainer logs, so no step waits. Jumps, a flat loss and gradients that are all zero are told
    once each and stop nothing. What one of several processes sees stops all of them.

    Args:
        on_nan: `stop` ends training before the next step and saves nothing more; `warn` only says so.

    Example:
        >>> LossGuard().findings                    # Trainer(..., callbacks=[LossGuard()])
        ()
    """

    slug = "loss-guard"

    def __init__(self, on_nan: Literal["stop", "warn"] = "stop") -> None:
        self.on_nan = on_nan
        self.findings: tuple[Finding, ...] = ()
        """`loss-not-finite`, `loss-spike`, `loss-flat`, `gradient-zero`; each at most once."""
        self._hook: Any = None
        self._seen: list[tuple[int, int, torch.Tensor]] = []
        self._step, self._batch = 0, 0
        self._elsewhere = False
        self._logged: deque[float] = deque(maxlen=_LONG)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins to look at what the model returns."""
        self._close()
        self.findings, self._seen, self._elsewhere = (), [], False
        self._logged.clear()
        if isinstance(kwargs.get("model"), nn.Module):
            self._hook = kwargs["model"].register_forward_hook(self._see)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The batches that follow belong to this step."""
        self._step, self._batch = state.global_step + 1, 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before a log, at which the Trainer itself makes all processes meet: they agree whether any saw such a loss."""
        if control.should_log and args.world_size > 1 and torch.distributed.is_initialized():
            own = [x.isfinite().all() for *_, x in self._seen]
            bad = 1.0 - torch.stack(own).all().float() if own else torch.zeros((), device=args.device)
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
            self._elsewhere = bool(bad.item())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Reads what was kept, and the figures that are logged."""
        logs = logs or {}
        if "loss" not in logs:
            return
        self._numbers(logs, control, kwargs.get("model"))
        loss, norm = float(logs["loss"]), logs.get("grad_norm")
        if norm == 0.0 and loss != 0.0:
            self._say(warning("gradient-zero", f"the gradients at step {state.global_step} are all zero", "nothing is learnt",
                              "check that the loss depends on what learns (`tunekit.check`)"), state)  # fmt: skip
        if math.isfinite(loss):
            self._course(loss, state)
            self._logged.append(loss)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the model as it came."""
        self._close()

    def _numbers(self, logs: dict[str, Any], control: TrainerControl, model: Any) -> None:
        """Looks for the first batch without a finite loss; a gradient norm that is none tells where batches do not."""
        seen, self._seen = self._seen, []
        values = torch.stack([x.float() for *_, x in seen]).tolist() if seen else []
        bad = next(((s, b, v) for (s, b, _), v in zip(seen, values, strict=True) if not math.isfinite(v)), None)
        norm = logs.get("grad_norm")
        if self.on_nan == "stop" and self._elsewhere:
            control.should_training_stop, control.should_save = True, False
        if bad is None and all(math.isfinite(x) for x in (logs["loss"], norm if norm is not None else 0.0)):
            return
        where = f"the loss of batch {bad[1]} of step {bad[0]} is {bad[2]}" if bad else f"the gradient norm is {norm}"
        tensor = _first_bad(model)
        self._say(
            error(
                "loss-not-finite", where + (f", and so is `{tensor}`" if tensor else ""),
                "every weight it reaches becomes no number either",
                "resume from `tunekit.last_checkpoint`, look at that batch, lower the learning rate, or use bfloat16 for float16",
            )
        )  # fmt: skip
        if self.on_nan == "stop":
            control.should_training_stop, control.should_save = True, False

    def _course(self, loss: float, state: TrainerState) -> None:
        recent = list(self._logged)[-_WINDOW:]
        if len(recent) == _WINDOW:
            mean, spread = statistics.fmean(recent), statistics.pstdev(recent)
            if loss > 2 * mean and loss > mean + 6 * spread:
                self._say(warning("loss-spike", f"the loss jumps from {mean:.4g} to {loss:.4g} at step {state.global_step}",
                                  "a bad batch, or a step that was too long", "lower the learning rate or `max_grad_norm`"), state)  # fmt: skip
        if len(self._logged) == _LONG and max(self._logged) - min(self._logged) <= 1e-6 * abs(loss):
            self._say(warning("loss-flat", f"the loss has been {loss:.6g} for {_LONG} logs", "nothing is learnt",
                              "check that something learns and that labels vary (`tunekit.check`)"), state)  # fmt: skip

    def _say(self, finding: Finding, state: TrainerState | None = None) -> None:
        if finding.code not in [f.code for f in self.findings]:
            self.findings = (*self.findings, finding)
            if state is None or state.is_world_process_zero:
                _LOG.log(logging.ERROR if finding.severity == "error" else logging.WARNING, "%s", finding)

    def _see(self, model: nn.Module, args: tuple, output: Any) -> None:
        """Keeps the loss of a training batch; nothing is read here."""
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if model.training and isinstance(loss, torch.Tensor):
            self._batch += 1
            self._seen.append((self._step, self._batch, loss.detach().mean()))

    def _close(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _first_bad(model: Any) -> str | None:
    """The first parameter, else the first gradient, that holds nan or inf."""
    if not isinstance(model, nn.Module):
        return None
    for name, p in model.named_parameters():
        for label, tensor in ((name, p.detach()), (f"{name}.grad", p.grad)):
            if tensor is not None and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return label
    return None
