"""Method and Objective: the abstract contracts. A subclass *is* its frozen configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit.errors import UnsupportedError, raise_all
from tunekit.fields import check_types, from_plain, hints, to_plain
from tunekit.finding import Finding, error
from tunekit.task import Task
from tunekit.workload import ModelFacts, Side, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import TrainerCallback

Family = Literal["full", "partial", "lora", "rescaling", "prompts", "adapters", "other"]
Reads = Literal["nothing", "weights", "data"]

REPEATED: ContextVar[tuple[int, int]] = ContextVar("REPEATED", default=(1, 1))
"""How often what is done now stands for, as a fraction: read by the simulator, where a loop is taken once without weights."""


SUPERVISED: ContextVar[float] = ContextVar("SUPERVISED", default=1.0)
"""Share of a batch's positions that have a label: weightless labels do not say."""


@contextmanager
def repeated(all_of_it: int, this: int) -> Iterator[None]:
    """While it lasts, an op on weightless tensors counts as `all_of_it / this` of them."""
    token = REPEATED.set((all_of_it, this))
    try:
        yield
    finally:
        REPEATED.reset(token)


OWN_MODULE = "tunekit_objective"
"""The name that a module of an objective's own has in the model while it learns there; it is never shipped."""


ACTIVATIONS = "frozen_activations"
"""What a batch calls the answers of the frozen part: (rows, tokens, width), or (rows, choices, tokens, width)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train with a method: the values a plan starts from, and where they come from."""

    learning_rate: float
    num_train_epochs: float
    effective_batch_size: int = 16
    """Rows per optimizer step, over all devices and accumulation."""
    lr_scheduler_type: str = "linear"
    warmup: float = 0.06
    """Share of the steps."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    sources: tuple[str, ...] = ()
    """Where the values come from."""


class Config(ABC):
    """What methods and objectives share: typed fields checked at construction, a slug, plain values both ways."""

    __slots__ = ()

    slug: ClassVar[str]
    """The name in plans and on the command line; the file is named so too, with underscores."""
    title: ClassVar[str]
    """The name in print."""
    reference: ClassVar[str]
    """Authors, title, year."""

    def __post_init__(self) -> None:
        faults = check_types(self, self.slug)
        raise_all(faults or self.faults())

    def faults(self) -> list[Finding]:
        """What is wrong with the values by themselves; types are already right when this is asked."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """`kind` and every field as plain values."""
        return {"kind": self.slug, **{name: to_plain(getattr(self, name)) for name in hints(type(self))}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        """The configuration written by `to_dict`; an unknown key is an error that names the nearest."""
        return from_plain(cls, {k: v for k, v in data.items() if k != "kind"}, cls.slug)


class Method(Config):
    """A fine-tuning method: which parameters learn, and what is put into the model so that they can.

    A subclass is a frozen dataclass of the method's settings in one file of `tunekit/methods`. `apply` is the only
    place that touches a model; the simulator calls it on weightless tensors, the trainer on real ones.

    Example:
        >>> import tunekit
        >>> method = tunekit.methods.Lora(r=8, target_modules="attention")
        >>> isinstance(method, Method), method.slug, method.trains_base
        (True, 'lora', False)
        >>> tunekit.methods.Lora.from_dict(method.to_dict()) == method
        True
    """

    __slots__ = ()

    family: ClassVar[Family]
    """Which family it is compared within."""
    merges: ClassVar[bool] = False
    """Whether `merge` can fold what was learnt into the base weights."""
    trains_base: ClassVar[bool] = False
    """Whether it changes the base's own weights (then a quantised base cannot carry it)."""
    packs: ClassVar[bool] = True
    """Whether rows joined into one stay apart under it."""

    own_format: ClassVar[bool] = False
    """Whether it saves a part of the model in our own format, rather than PEFT's adapter or the whole model."""

    # ------------------------------------------------------------------ before anything is loaded
    @abstractmethod
    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Why this cannot work, with the nearest thing that does, or None. Loads nothing."""

    @classmethod
    def candidates(cls, workload: Workload) -> tuple[Method, ...]:
        """The configurations worth comparing for this workload; one with all defaults unless a method knows better.

        A method that needs values which nobody can guess proposes none.
        """
        return (cls(),)

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        """Instances that the contract tests run; one with all defaults unless the method needs values to exist."""
        return (cls(),)

    @abstractmethod
    def recipe(self, workload: Workload) -> Recipe:
        """Learning rate, schedule and length, with sources."""

    def frozen_layers(self, model: ModelFacts) -> int:
        """How many of the lowest layers never learn under this method, nor anything below them; 0 where that cannot be told."""
        return 0

    @property
    def reads(self) -> Reads:
        """Whether initialisation looks at the base's weights or at data; on weightless tensors values are skipped."""
        return "nothing"

    # ------------------------------------------------------------------ on a model
    @abstractmethod
    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Makes `model` learn by this method: inserts modules, sets `requires_grad`; returns the model to train.

        Called by `tunekit.prepare`, which gives the model back as it was when this raises. The head of the task
        always learns and is always saved.
        """

    def trainable_names(self, model: nn.Module) -> frozenset[str]:
        """Names of the parameters that will ever train, as `model.named_parameters()` gives them."""
        named = model.named_parameters()
        return frozenset(n for n, p in named if p.requires_grad and OWN_MODULE not in n.split("."))

    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """Names of the base's tensors that applying or training overwrites; asked before `apply`.

        `tunekit.prepare` keeps copies of these so that `tunekit.unload` can put them back.
        """
        return frozenset()

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The optimizer's groups; every trainable parameter in exactly one. No decay on biases and norms."""
        from tunekit.structure import decayed_names

        decayed = decayed_names(model)
        split: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for name, p in model.named_parameters():
            if p.requires_grad:
                split[name in decayed].append(p)
        groups = [(split[True], weight_decay), (split[False], 0.0)]
        return [{"params": ps, "lr": learning_rate, "weight_decay": wd} for ps, wd in groups if ps]

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes what was learnt: PEFT's files where PEFT can express it, otherwise our own format.

        Args:
            model: What `apply` or `load` returned.
            folder: Where to; made where it does not exist.
            state_dict: The model's whole state where only the host can gather it (ZeRO-3, FSDP); None: read from the model.
        """

    @abstractmethod
    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Attaches what `save` wrote to a fresh base of the same task; the result is ready for use, not frozen."""

    @classmethod
    def from_peft(cls, config: Any) -> Method | None:
        """The method that a PEFT configuration is, so that an adapter saved by plain PEFT is known for what it is."""
        return None

    def merge(self, model: nn.Module) -> nn.Module:
        """Folds what was learnt into the base and returns the plain model.

        Raises:
            UnsupportedError: `method-no-merge` where the method cannot.
        """
        raise UnsupportedError(
            error(
                "method-no-merge",
                f"merge of `{self.slug}`",
                "what it learns is no change of the base's weights",
                "keep it attached",
            )
        )

    def callbacks(self) -> tuple[TrainerCallback, ...]:
        """Callbacks the method needs while it trains."""
        return ()


class Objective(Config):
    """What is minimised: a pure `loss(model, inputs, num_items_in_batch)`, right under accumulation and over ranks.

    Example:
        >>> import tunekit
        >>> isinstance(tunekit.objectives.Supervised(), Objective)
        True
    """

    __slots__ = ()

    plain_trainer: ClassVar[bool] = False
    """Whether a Trainer without `TrainerMixin` computes it (a Trainer's own loss hook sees no inputs)."""
    loops_over_rows: ClassVar[bool] = False
    """Whether `loss` takes more operations the more rows there are (pieces of a fixed size), which the simulator must know."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that `rows` adds and `collate` reads, which the model's forward does not know."""

    packs: ClassVar[bool] = False
    """Whether it is right on rows that are joined and told apart by position ids alone."""
    own_rows: ClassVar[bool] = False
    """Whether rows are encoded and answered its own way (`encode`, `answer`), so that columns which the model does not know
    are kept for it."""

    def supports(self, model: ModelFacts, task: Task) -> Finding | None:
        """Why this cannot work, with the nearest thing that does, or None. Loads nothing."""
        return None

    def learnt_as(self, task: Task, side: Side) -> Task:
        """The form in which a model of this side learns the task: what its auto class is and whether it gets a new head."""
        return task

    def encode(
        self, rows: Any, task: Task, tokenizer: Any, encode: Any, *, side: Side, examples: Any, **settings: Any
    ) -> Any:
        """Rows as the loss takes them, as `tunekit.data.encode` returns them.

        Args:
            rows: Of the plan's task.
            task: The plan's task.
            tokenizer: The model's.
            encode: The task's own encoder: `encode(rows, task, tokenizer, **settings)`.
            side: Of the model.
            examples: The training rows.
            **settings: The encoder's: columns, longest row, classes.
        """
        return encode(rows, task, tokenizer, **settings)

    def ready(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Called by `TrainerMixin` once before training: reads what the loss needs, refuses what cannot work.

        Args:
            model: The prepared model.
            tokenizer: The host's; None where it has none.
        """
        return

    def rows(self, dataset: Any, model: nn.Module, tokenizer: Any = None) -> Any:
        """Called by `TrainerMixin` once, after `ready`: the training rows as this objective learns from them.

        Args:
            dataset: The encoded training rows.
            model: The prepared model.
            tokenizer: The host's; None where it has none.
        """
        return dataset

    def beside(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """Modules that take memory beside the model and never learn, such as a teacher."""
        return ()

    @abstractmethod
    def loss(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> tuple[torch.Tensor, Any]:
        """The loss and the model's outputs.

        Args:
            model: The prepared model.
            inputs: The collated batch, labels included.
            num_items_in_batch: Supervised items of the whole optimizer step over accumulation and ranks; the loss is
                the sum over this batch's items divided by it. None: the mean over this batch.
        """

    def collate(self, features: list[dict[str, Any]], collate: Any) -> dict[str, torch.Tensor]:
        """A batch from rows; `collate` is the task's own collator."""
        return collate(features)

    def num_items(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Supervised items of a batch; None: labels that are not -100, as the host counts them."""
        return None

    def answer(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
        """What the model says of a batch without labels, with `logits` as the task's metrics take them."""
        return model(**inputs)

    def weightless(self, batch: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
        """A batch as `loss` takes it out of the form's plain one, for the simulator: shapes count, values do not."""
        return dict(batch)


def learnt_form(objective: Objective | None, task: Task, side: Side) -> Task:
    """The form in which a plan's task is learnt; the task itself without an objective."""
    return task if objective is None else objective.learnt_as(task, side)
