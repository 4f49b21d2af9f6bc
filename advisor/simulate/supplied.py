"""What the frozen layers say of a batch comes with it (`frozen_activations: cached`): a step without them, and the pass before."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tunekit.advisor.simulate.checkpointing import autocast_of
from tunekit.advisor.simulate.collated import Shape, make_batch
from tunekit.advisor.simulate.kernels import Attention
from tunekit.advisor.simulate.trace import EVALUATION, Recorder
from tunekit.contracts import ACTIVATIONS
from tunekit.frozen_part import FrozenPart, Supply, frozen_answer, frozen_part
from tunekit.task import Task

if TYPE_CHECKING:
    from tunekit.advisor.simulate.loop import Prepared, Step, Taking

_ASKED = Shape(batch=2, length=8, target_length=8, choices=2)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Supplied:
    """What is known of the frozen layers' answers."""

    part: FrozenPart
    answers: int
    """The length of the tuple a layer answers with; 0: the hidden states alone."""
    width: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """What the answer to a token takes."""
        return self.width * self.dtype.itemsize

    def put_into(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch with the answers, as the collator makes it."""
        mask = batch["attention_mask"]
        return {**batch, ACTIVATIONS: torch.zeros((*mask.shape, self.width), dtype=self.dtype, device=mask.device)}

    def attach(self, model: Any) -> list[Any]:
        """Lets the model do without the frozen layers; returns handles of the hooks."""
        return Supply(self.part, self.answers).attach(model)


def supplied(on: Prepared, task: Task, step: Step) -> Supplied:
    """What the frozen layers of a model answer with.

    Raises:
        UnsupportedError: none are frozen, or their answers cannot be kept.
    """
    part = frozen_part(on.model)
    weightless = on.device == "meta"
    batch = _unlabelled(make_batch(task, on.model, _ASKED, on.device))
    with contextlib.ExitStack() as modes:
        if weightless:
            modes.enter_context(Recorder(step.device, padded=True))
            modes.enter_context(Attention(step.device))
        modes.enter_context(autocast_of(step, on.device))
        hidden, answers = frozen_answer(on.model, part, batch)
    return Supplied(part=part, answers=answers, width=hidden.shape[-1], dtype=hidden.dtype)


def filling(taking: Taking) -> None:
    """A batch of the pass that fills the store: through all layers of the model, which are the frozen ones, and no further."""
    recorder, batch = taking.recorder, _unlabelled(taking.batch(taking.shape))
    part = FrozenPart(stack="", layers=tuple(taking.on.stacks[0]), above=0)
    with recorder:
        recorder.turn(EVALUATION)
        with autocast_of(taking.step, taking.on.device):
            hidden, _ = frozen_answer(taking.model, part, batch)
        recorder.turn("end")
        del hidden


def _unlabelled(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in batch.items() if "label" not in k and not k.endswith("_positions")}
