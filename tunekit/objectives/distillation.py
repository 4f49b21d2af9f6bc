"""Distillation: a student learns what a teacher says, beside what the labels say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit.contracts import Objective
from tunekit.finding import Finding
from tunekit.objectives import _taught
from tunekit.objectives._distillation_faults import missing_teacher, range_faults, support_fault
from tunekit.objectives._divergence import Divergence, HiddenLoss
from tunekit.task import Task
from tunekit.workload import ModelFacts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunekit.objectives._pieces import Mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation(Objective):
    """A teacher's soft labels, hidden states, attention or texts, mixed with the hard labels: for every task.

    The loss of a supervised item (a row, a tag, a target token) is
    `hard_weight * cross_entropy + (1 - hard_weight) * temperature**2 * divergence(teacher, student)`, and with
    `hidden_weight` and `attention_weight` the distance of matched layers of its row.
    The teacher is frozen, answers without dropout, is not divided by the student's sharding, and is neither in the
    optimizer nor in what is saved.

    Over a vocabulary the logits are made for `positions_at_once` positions at a time, for the loss and again for its
    gradient, so that memory does not grow with length x vocabulary. With `cache` the teacher answers once, before
    training (`tunekit.teach`, `tunekit teach plan.yaml`).

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
        "On-Policy Distillation of Language Models, 2024; hidden states: Jiao et al., TinyBERT, 2020; attention: Wang et "
        "al., MiniLM, 2020; texts: Kim and Rush, Sequence-Level Knowledge Distillation, 2016"
    )
    loops_over_rows: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = (*_taught.LOGITS, *_taught.TOP)

    teacher: str | None = None
    """Folder or hub id of the teacher, with the task's head and the student's tokenizer; None where a live model is handed
    over by `taught_by`."""
    teacher_revision: str | None = None
    """Commit, tag or branch of a teacher from a hub."""
    teacher_adapter: str | None = None
    """A folder that training with tunekit, PEFT or AdapterHub saved: what was learnt on top of `teacher`."""
    teacher_quantization: Literal["nf4", "fp4", "int8"] | None = None
    """bitsandbytes quantisation of the teacher."""
    teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """None: the student's. A frozen teacher in bfloat16 takes half the memory."""
    teacher_device: str | None = None
    """Where the teacher answers, such as `cuda:1` or `cpu`; None: beside the student."""
    temperature: float = 2.0
    """Softens both distributions; 1 to 4 is usual for classes, 1 to 2 over a vocabulary."""
    hard_weight: float = 0.5
    """The share of the labels' own loss, 0 to 1. Hinton et al. found a considerably lower weight on it best."""
    divergence: Divergence = "forward-kl"
    """`forward-kl` covers all that the teacher finds likely, `reverse-kl` seeks its largest mode, `jsd` lies between."""
    beta: float = 0.5
    """For `jsd`: the teacher's share of the mixture; towards 0 it is like forward KL, towards 1 like reverse KL."""
    hidden_weight: float = 0.0
    """Weight of the distance of hidden states, which is added; where the widths differ a projection is learnt, which is
    kept in checkpoints and left out of the model that is saved. TinyBERT: 1."""
    hidden_loss: HiddenLoss = "mse"
    """`mse` as in TinyBERT, `cosine` as in DistilBERT; the latter takes no notice of the states' size."""
    attention_weight: float = 0.0
    """Weight of KL(teacher || student) of what the layers attend to, which is added; both need eager attention."""
    layer_map: tuple[int, ...] = ()
    """For each layer of the student the teacher's layer, counted from 1; empty: evenly spread, the last to the last."""
    targets: Literal["labels", "teacher"] = "labels"
    """`teacher`: what the teacher writes stands in place of the labels (causal-lm, seq2seq); it is kept in `cache`."""
    target_tokens: int = 256
    """Most tokens of a text that the teacher writes."""
    target_beams: int = 1
    """Beams of the teacher's search; Kim and Rush took 5."""
    cache: str | None = None
    """Folder of the teacher's answers, filled once by `tunekit teach`: its logits or, over a vocabulary, the `top_k` largest
    and the share of the rest. Training then needs no teacher; what it has no answers for (evaluation) counts labels only."""
    top_k: int = 64
    """How many log-probabilities the cache keeps of each distribution over a vocabulary: 6 bytes each."""
    positions_at_once: int = 1024
    """Positions whose logits over the vocabulary are alive at the same time; more is faster and takes more memory."""
    kernel: Literal["auto", "pieces", "liger"] = "auto"
    """`auto`: Liger's fused loss over a vocabulary on a GPU where liger-kernel is installed and both output layers are plain
    and of one size, otherwise pieces."""
    _held: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)

    def faults(self) -> list[Finding]:
        """Values out of range, and settings that exclude each other."""
        return range_faults(self)

    @property
    def is_cached(self) -> bool:
        """Whether the teacher's answers come from the cache while training."""
        return self.cache is not None and self.targets == "labels"

    @property
    def matches_layers(self) -> bool:
        """Whether what lies inside the models is compared."""
        return self.hidden_weight > 0 or self.attention_weight > 0

    @property
    def asks_teacher(self) -> bool:
        """Whether a live teacher answers while training."""
        return not self.is_cached and (self.hard_weight < 1 or self.matches_layers)

    def taught_by(self, teacher: nn.Module) -> Distillation:
        """The same objective with a live teacher: any model of the task, prepared, quantised or on another device.

        It is frozen and put into eval mode.
        """
        from tunekit.objectives._teacher import freeze

        made = replace(self)
        made._held["given"] = freeze(teacher)
        return made

    def supports(self, model: ModelFacts, task: Task) -> Finding | None:
        """A teacher must be named or handed over; a student's classes and words are compared by `ready`."""
        return support_fault(self, task, given="given" in self._held)

    def ready(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Reads the teacher, compares it with the student, and puts a projection where widths differ.

        Raises:
            MissingError: `distillation-teacher-missing`.
            UnsupportedError: `distillation-no-teacher`, `distillation-teacher-head`, `distillation-teacher-task`,
                `distillation-classes`, `distillation-vocabulary`, `distillation-attention-kernel`,
                `distillation-layer-map`, `distillation-liger`.
        """
        from tunekit.objectives._pair import make_ready

        if fault := support_fault(self, self.task_of(model), given="given" in self._held):
            raise missing_teacher(fault)
        if self.asks_teacher:
            make_ready(self, model, self.teacher_of(model), tokenizer)

    def rows(self, dataset: Any, model: nn.Module, tokenizer: Any = None) -> Any:
        """The rows with the teacher's answers beside them, or its texts in place of the labels, where there is a cache.

        Raises:
            MissingError: `distillation-cache-missing`, `distillation-cache-unfinished`.
            UnsupportedError: `distillation-cache-stale`, `distillation-cache-rows`, `distillation-classes`.
        """
        if self.cache is None:
            return dataset
        from tunekit.objectives._cached_rows import with_answers

        return with_answers(self, dataset, model, tokenizer)

    def collate(self, features: list[dict[str, Any]], collate: Any) -> dict[str, torch.Tensor]:
        """A batch, with the teacher's answers as tensors where the rows have them."""
        if not self._held.get("cached"):
            made: dict[str, torch.Tensor] = collate(features)
            return made
        return _taught.collate_taught(features, collate, **self._held["cached"])

    def teach(
        self,
        dataset: Any,
        task: Task,
        student: Any,
        tokenizer: Any,
        collate: Any,
        *,
        rows_at_once: int = 16,
        say: Callable[[str], None] = lambda text: None,
        progress: Callable[[int, int], None] = lambda done, of: None,
        overwrite: bool = False,
        only_size: bool = False,
    ) -> int:
        """Fills `cache` with the teacher's answers to rows; goes on where an earlier call stopped.

        Args:
            dataset: The encoded training rows.
            task: What they are for.
            student: The student's configuration.
            tokenizer: The student's.
            collate: The task's collator.
            rows_at_once: Rows that the teacher is asked at a time.
            say: Told the size before anything is written.
            progress: Told the rows that are done, and all.
            overwrite: Whether a cache of something else is replaced.
            only_size: Whether to stop after saying the size.

        Returns:
            About how many bytes the cache takes.

        Raises:
            UnsupportedError: what the teacher is refused for, `distillation-cache-stale`.
        """
        from tunekit.objectives._cached_rows import fill

        return fill(
            self, dataset, task, student, tokenizer, collate, rows_at_once=rows_at_once, say=say, progress=progress,
            overwrite=overwrite, only_size=only_size,
        )  # fmt: skip

    def num_items(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Rows of question answering, which has no labels that the host could count; None for the other tasks."""
        places = inputs.get("start_positions")
        return None if places is None else places.new_tensor(places.numel())

    def beside(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The teacher and, on weightless tensors, the projection, which the model itself holds otherwise."""
        from tunekit.objectives._live import on_meta
        from tunekit.objectives._pair import projection_of

        if not self.asks_teacher:
            return ()
        teacher = self.teacher_of(model)
        maps = projection_of(self, model, teacher) if on_meta(model) and self.hidden_weight else None
        return (teacher,) if maps is None else (teacher, maps)

    def teacher_of(self, model: nn.Module) -> Any:
        """The teacher of this student, read and compared at the first time; without weights where the student has none."""
        from tunekit.objectives._pair import teacher_of

        return teacher_of(self, model)

    def task_of(self, model: nn.Module) -> Task:
        """The task of the student's class."""
        from tunekit.objectives._live import task_of

        return task_of(model)

    def mixed(self) -> Mixed:
        """The loss over a vocabulary."""
        from tunekit.objectives._pieces import Mixed

        return Mixed(
            kind=self.divergence, temperature=self.temperature, beta=self.beta, hard_weight=self.hard_weight,
            at_once=self.positions_at_once, kernel=self.kernel,
        )  # fmt: skip

    def loss(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> tuple[torch.Tensor, Any]:
        """The loss and the student's outputs, see `Objective.loss`.

        Raises:
            UnsupportedError: `distillation-cache-rows`, for a training batch without the answers of the cache.
        """
        from tunekit.objectives._pair import over_classes, over_vocabulary
        from tunekit.objectives._teacher import VOCABULARY_TASKS

        task = self.task_of(model)
        total, items, outputs = (over_vocabulary if task.name in VOCABULARY_TASKS else over_classes)(self, model, inputs, task)  # fmt: skip
        return total / (items.clamp(min=1) if num_items_in_batch is None else num_items_in_batch), outputs
