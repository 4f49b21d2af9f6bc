"""Distillation: a student learns what a teacher says, beside what the labels say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit.contracts import Objective
from tunekit.errors import UnsupportedError
from tunekit.finding import Finding, error
from tunekit.objectives._class_losses import class_losses
from tunekit.objectives._divergence import Divergence, divergence
from tunekit.objectives._live import on_meta, questions, task_of, unwrapped
from tunekit.objectives._teacher import (
    VOCABULARY_TASKS,
    check_pair,
    check_words,
    freeze,
    read_teacher,
    tokenizer_beside,
    weightless_teacher,
)
from tunekit.objectives._vocabulary import answers, decoder_targets, sum_in_pieces, with_decoder_inputs
from tunekit.task import Task
from tunekit.workload import ModelFacts

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation(Objective):
    """Soft labels of a teacher, mixed with the hard labels: for every task.

    The loss of a supervised item (a row, a tag, a target token) is
    `hard_weight * cross_entropy + (1 - hard_weight) * temperature**2 * divergence(teacher, student)`.
    The teacher is frozen, answers without dropout, and is neither in the optimizer nor in what is saved.

    Over a vocabulary the logits are made for `positions_at_once` positions at a time, for the loss and again for its
    gradient, so that memory does not grow with length x vocabulary.

    Example:
        >>> import tunekit
        >>> objective = Distillation(teacher="./teacher", temperature=4.0)
        >>> objective.to_dict()["divergence"]
        'forward-kl'
        >>> plan = tunekit.Plan(model="./student", task="sequence-classification", method=tunekit.methods.Full(), objective=objective)
    """

    slug: ClassVar[str] = "distillation"
    title: ClassVar[str] = "Distillation"
    reference: ClassVar[str] = (
        "Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; generalised JSD: Agarwal et al., "
        "On-Policy Distillation of Language Models, 2024"
    )
    loops_over_rows: ClassVar[bool] = True

    teacher: str | None = None
    """Folder or hub id of the teacher, with the task's head and the student's tokenizer; None where a live model is handed
    over by `taught_by`. A teacher with an adapter is handed over so."""
    teacher_revision: str | None = None
    """Commit, tag or branch of a teacher from a hub."""
    temperature: float = 2.0
    """Softens both distributions; 1 to 4 is usual for classes, 1 to 2 over a vocabulary."""
    hard_weight: float = 0.5
    """The share of the labels' own loss, 0 to 1. Hinton et al. found a considerably lower weight on it best."""
    divergence: Divergence = "forward-kl"
    """`forward-kl` covers all that the teacher finds likely, `reverse-kl` seeks its largest mode, `jsd` lies between."""
    beta: float = 0.5
    """For `jsd`: the teacher's share of the mixture; towards 0 it is like forward KL, towards 1 like reverse KL."""
    positions_at_once: int = 1024
    """Positions whose logits over the vocabulary are alive at the same time; more is faster and takes more memory."""
    _held: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)

    def faults(self) -> list[Finding]:
        """Values out of range."""
        rules = {
            "temperature": (self.temperature > 0, "it must be above 0", "set `temperature=2.0`"),
            "hard_weight": (0 <= self.hard_weight <= 1, "it is a share", "set `hard_weight=0.5`"),
            "beta": (0 < self.beta < 1, "it must be between 0 and 1", "set `beta=0.5`, or `divergence` to a KL"),
            "positions_at_once": (self.positions_at_once > 0, "it must be at least 1", "set `positions_at_once=1024`"),
        }
        return [
            error("distillation-range", f"`{name}` of `Distillation` is {getattr(self, name)}", why, fix)
            for name, (fine, why, fix) in rules.items()
            if not fine
        ]

    def taught_by(self, teacher: nn.Module) -> Distillation:
        """The same objective with a live teacher: any model of the task, prepared, quantised or on another device.

        It is frozen and put into eval mode.
        """
        made = replace(self)
        made._held["given"] = freeze(teacher)
        return made

    def supports(self, model: ModelFacts, task: Task) -> Finding | None:
        """A teacher must be named or handed over; a student's classes and words are compared by `ready`."""
        if "given" in self._held:
            return None
        if self.teacher is None:
            return _no_teacher()
        if self.teacher.startswith((".", "/", "~")) and not Path(self.teacher).expanduser().is_dir():
            return error(
                "distillation-teacher-missing", f"teacher {self.teacher!r}", "no such folder",
                "check the path, or give a hub id such as `owner/name`",
            )  # fmt: skip
        return None

    def ready(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Reads the teacher and compares it with the student.

        Raises:
            MissingError: `distillation-teacher-missing`.
            UnsupportedError: `distillation-no-teacher`, `distillation-teacher-head`, `distillation-teacher-task`,
                `distillation-classes`, `distillation-vocabulary`.
        """
        teacher = self.teacher_of(model)
        if tokenizer is not None:
            check_words(model, teacher, tokenizer, tokenizer_beside(teacher))

    def beside(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The teacher."""
        return (self.teacher_of(model),)

    def teacher_of(self, model: nn.Module) -> Any:
        """The teacher of this student, read and compared at the first time; without weights where the student has none."""
        task = task_of(model)
        if on_meta(model):
            if "meta" not in self._held:
                given = self._held.get("given")
                self._held["meta"] = weightless_teacher(self.teacher, self.teacher_revision, given, task)
            return self._held["meta"]
        if "ready" not in self._held:
            if "given" not in self._held and self.teacher is None:
                raise UnsupportedError(_no_teacher())
            teacher = self._held.get("given")
            if teacher is None:
                first = next(p for p in model.parameters() if p.is_floating_point())
                teacher = read_teacher(str(self.teacher), self.teacher_revision, task, first.dtype).to(first.device)
            check_pair(model, teacher)
            self._held["ready"] = teacher
        return self._held["ready"]

    # ------------------------------------------------------------------ the loss
    def loss(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> tuple[torch.Tensor, Any]:
        """The loss and the student's outputs, see `Objective.loss`."""
        total, items, outputs = (
            self._over_vocabulary(model, inputs)
            if task_of(model).name in VOCABULARY_TASKS
            else self._over_classes(model, inputs)
        )
        return total / (items.clamp(min=1) if num_items_in_batch is None else num_items_in_batch), outputs

    def _soft(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return divergence(student, teacher, self.divergence, self.temperature, self.beta)

    def _over_classes(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[Any, Any, Any]:
        """Sum of the loss, number of items, outputs."""
        import torch

        teacher = self.teacher_of(model)
        outputs = model(**questions(model, inputs))
        with torch.no_grad():
            taught = teacher(**_there(teacher, questions(teacher, inputs)))
        task, config = task_of(model), unwrapped(model).config
        losses = class_losses(task, config, outputs, taught, inputs, self._soft)
        mixed = self.hard_weight * losses.hard + (1 - self.hard_weight) * losses.soft
        return mixed.where(losses.kept, 0.0).sum(), losses.kept.sum(), outputs

    def _over_vocabulary(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[Any, Any, Any]:
        """Sum of the loss, number of items, outputs; while training these hold the first position's logits only."""
        import torch

        teacher, labels = self.teacher_of(model), inputs["labels"]
        targets = decoder_targets(model, labels)
        asked = with_decoder_inputs(model, questions(model, inputs), labels)
        said = answers(model, asked, whole=not model.training)
        with torch.no_grad():
            right = answers(teacher, _there(teacher, {**questions(teacher, inputs), **_decoder_inputs(asked)}))
        length = targets.shape[1]
        rows = (said.last(length), right.last(length), targets.reshape(-1))
        total = sum_in_pieces(partial(self._piece, said.logits, right.logits), rows, self.positions_at_once)
        return total, targets.ne(-100).sum(), said.outputs

    def _piece(self, speak: Any, teach: Any, s: torch.Tensor, t: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum over some positions. Vocabularies padded to different sizes are compared in what both have."""
        import torch
        from torch.nn.functional import cross_entropy

        logits = speak(s)
        with torch.no_grad():
            taught = teach(t).to(logits.device)
        both = min(logits.shape[-1], taught.shape[-1])
        soft = self._soft(logits[:, :both], taught[:, :both]).where(targets.ne(-100), 0.0)
        wide = logits if logits.element_size() >= 4 else logits.float()
        hard = cross_entropy(wide, targets, ignore_index=-100, reduction="sum")
        return self.hard_weight * hard + (1 - self.hard_weight) * soft.sum()


def _no_teacher() -> Finding:
    return error(
        "distillation-no-teacher", "`teacher` of `Distillation` is null", "nobody teaches",
        "set `teacher` to a folder or hub id, or hand a model over by `taught_by`",
    )  # fmt: skip


def _there(teacher: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs on the teacher's device."""
    device = next(p.device for p in teacher.parameters())
    return {k: v.to(device) for k, v in inputs.items()}


def _decoder_inputs(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the student's decoder reads, for the teacher's to read the same."""
    return {k: v for k, v in asked.items() if k == "decoder_input_ids"}
