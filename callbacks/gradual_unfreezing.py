"""GradualUnfreezing: the head learns first, and layer after layer joins from the top down."""

from __future__ import annotations

import logging
from typing import Any, Literal

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.errors import InvalidError, UnsupportedError
from tunekit.finding import error
from tunekit.structure import levels, task_model

_LOG = logging.getLogger(__name__)


class GradualUnfreezing(TrainerCallback):
    """Lets the layers of a model begin to learn one after the other, from the top down.

    The optimizer is built over everything that will ever learn, as a Trainer does by itself. A layer whose turn has
    not come gets no gradient, so the optimizer skips it: its weights, moments and step counts stay untouched, and
    weight decay does not reach it. Which layers learn follows from the step alone, so a resumed run goes on as if it
    had never stopped. After training everything that was to learn wants gradients again.

    With DistributedDataParallel, which settles at the start whose gradients it waits for, they are computed and dropped
    before the optimizer's step; clipping then counts them. DeepSpeed and FSDP are refused.

    Args:
        every: How long each layer waits for the one above it; None leaves the run alone.
        unit: What `every` counts: `epochs` or (optimizer) `steps`.

    Raises:
        InvalidError: `unfreezing-every`.

    Example:
        >>> GradualUnfreezing(every=1).unit     # Trainer(..., callbacks=[GradualUnfreezing(every=1)])
        'epochs'

    References:
        Howard & Ruder, Universal Language Model Fine-tuning for Text Classification, 2018.
    """

    slug = "gradual-unfreezing"

    def __init__(self, every: float | None = None, unit: Literal["epochs", "steps"] = "epochs") -> None:
        if (every is not None and every <= 0) or unit not in ("epochs", "steps"):
            seen, why = f"`every={every!r}, unit={unit!r}`", "it is a length above 0 in epochs or steps"
            raise InvalidError(error("unfreezing-every", seen, why, 'pass `every=1, unit="epochs"`'))
        self.every = every
        self.unit = unit
        self._stages: list[list[nn.Parameter]] = []
        self._drops = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sorts what the optimizer holds by layer, and freezes those whose turn has not come."""
        model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
        if self.every is None or model is None or optimizer is None:
            return
        _refuse_shards(args)
        self._drops = args.world_size > 1
        self._stages = _stages(model, optimizer)
        self._warn_of_the_end(state)
        self._freeze(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets the next layer learn when its turn has come."""
        self._freeze(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drops the gradients of those that wait, where they had to be computed."""
        if self._drops:
            for p in self._waiting(state):
                p.grad = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the model as it came: everything that was to learn wants gradients."""
        for p in (p for stage in self._stages for p in stage):
            p.requires_grad_(True)
        self._stages = []

    def learning(self, state: TrainerState) -> int:
        """How many layers learn in the step that begins now, the head counted as one."""
        if self.every is None:
            return len(self._stages)
        done = state.global_step if self.unit == "steps" else state.epoch or 0.0
        # An epoch is counted as a quotient of batches, which may fall a rounding short of a whole one.
        return min(len(self._stages), 1 + int(done / self.every + 1e-6))

    def _waiting(self, state: TrainerState) -> list[nn.Parameter]:
        return [p for stage in self._stages[self.learning(state) :] for p in stage]

    def _freeze(self, state: TrainerState) -> None:
        if self._drops:
            return
        count = self.learning(state)
        for i, stage in enumerate(self._stages):
            for p in stage:
                p.requires_grad_(i < count)
                if i >= count:
                    p.grad = None

    def _warn_of_the_end(self, state: TrainerState) -> None:
        """Says so where the run is over before the last layer's turn."""
        assert self.every is not None
        length = state.max_steps if self.unit == "steps" else state.num_train_epochs
        started = min(len(self._stages), 1 + int((length - 1e-6) / self.every))
        if state.is_world_process_zero and length and started < len(self._stages):
            _LOG.warning(
                "the run ends before %d of %d layers begin to learn; shorten `every=%g` (%s) or train longer",
                len(self._stages) - started, len(self._stages), self.every, self.unit,
            )  # fmt: skip


def _stages(model: nn.Module, optimizer: Any) -> list[list[nn.Parameter]]:
    """What the optimizer holds by layer, from the top down."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    level = levels(model)
    found: dict[int, list[nn.Parameter]] = {}
    for name, p in task_model(model).named_parameters():
        if id(p) in held:
            found.setdefault(level[name], []).append(p)
    return [found[key] for key in sorted(found)]


def _refuse_shards(args: TrainingArguments) -> None:
    """Refuses what lays the learning parameters out once.

    Raises:
        UnsupportedError: `unfreezing-sharding`.
    """
    kind = getattr(args.distributed_state, "distributed_type", None)
    name = str(getattr(kind, "value", kind))
    if name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        why = "what learns is laid out over the devices once, at the start"
        raise UnsupportedError(
            error("unfreezing-sharding", f"gradual unfreezing under {name}", why, "train all layers from the start, or use DDP")
        )  # fmt: skip
