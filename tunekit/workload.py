"""Workload: what is asked, frozen. ModelFacts + DataFacts + Task + Hardware + Goal."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunekit.errors import raise_all
from tunekit.fields import check_types
from tunekit.finding import Finding, error
from tunekit.task import ProblemType, Task

Side = Literal["encoder", "decoder", "seq2seq"]
Goal = Literal["quality", "balanced", "speed", "memory", "storage", "retention", "latency"]
GOALS: tuple[Goal, ...] = ("quality", "balanced", "speed", "memory", "storage", "retention", "latency")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What is known of a model from its configuration alone; no weights are read for it.

    Example:
        >>> facts = ModelFacts(name="tiny", config_json="{}", model_type="bert", side="encoder", num_parameters=4_000_000,
        ...                    num_layers=2, hidden_size=128, vocab_size=30522,
        ...                    head_names=(("sequence-classification", ("classifier",)),))
        >>> facts.head_of(Task.named("sequence-classification"))
        ('classifier',)
    """

    name: str
    """Hub id, folder, or the class name of a live model."""
    revision: str | None = None
    """The hub revision, where one was named."""
    config_json: str = field(repr=False)
    """The transformers configuration as canonical JSON: enough to build the model without weights."""
    model_type: str
    """transformers' `model_type`, such as `llama`."""
    side: Side
    """Which half of a transformer it is."""
    num_parameters: int
    """Exact, from a build on the meta device (without a task head); tied weights counted once."""
    num_layers: int
    """Blocks; of the encoder plus the decoder for seq2seq."""
    hidden_size: int
    vocab_size: int
    context_length: int | None = None
    """Longest input in tokens that the positions allow; None where nothing bounds it."""
    num_experts: int = 0
    """Experts in a mixture-of-experts block; 0 for dense models."""
    dtype: str = "float32"
    """The dtype that the checkpoint is stored in (`float32` where it does not say)."""
    has_weights: bool = False
    """Whether weights are at hand (a folder with weights, a live model, or a hub id)."""
    has_bias: bool = True
    """Whether any parameter outside the head is a bias."""
    can_checkpoint: bool = True
    """Whether transformers can checkpoint its activations."""
    attention_interface: bool = True
    """Whether its attention goes through transformers' attention interface, so that others can reach it."""
    is_instruct: bool = False
    """Whether it was tuned to follow instructions (has a chat template)."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks that transformers has an auto class of this architecture for."""
    head_names: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """For each task, the modules that are not in the pretrained weights and so must be trained."""

    @property
    def config(self) -> dict[str, Any]:
        """A fresh copy of the configuration as a dict."""
        return json.loads(self.config_json)

    def head_of(self, task: Task) -> tuple[str, ...]:
        """The names of the modules that `task` adds on top of the pretrained weights."""
        return dict(self.head_names).get(task.name, ())


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """What is known of the training data, read from the rows or given by hand. Lengths are tokens with specials.

    Raises:
        InvalidError: `data-type`, `data-negative`, `data-lengths-order`.

    Example:
        >>> facts = DataFacts(num_examples=1000, lengths=(8, 10, 12, 30), num_labels=20)
        >>> facts.mean_tokens, facts.max_tokens, facts.quantile_tokens(0.75), facts.examples_per_class
        (15.0, 30, 12, 50.0)
    """

    num_examples: int
    """Training rows."""
    num_eval_examples: int = 0
    """Rows kept for evaluation."""
    lengths: tuple[int, ...] = field(default=(), repr=False)
    """Token lengths of a sample of rows (at most 1,000), ascending; the input's, for seq2seq the source's."""
    target_lengths: tuple[int, ...] = field(default=(), repr=False)
    """For seq2seq the target's token lengths, otherwise empty."""
    supervised_tokens: float | None = None
    """Mean number of tokens a row that the loss sees; None where it is not a matter of tokens."""
    num_labels: int | None = None
    """Number of classes, tags or regression targets."""
    label_names: tuple[str, ...] = ()
    """Names of the classes in the order of their ids; empty where they have none."""
    class_counts: tuple[int, ...] = ()
    """Training rows per class."""
    problem_type: ProblemType | None = None
    """For sequence classification."""
    columns: tuple[tuple[str, str], ...] = ()
    """(our column name, the data's column name) pairs."""
    num_choices: int | None = None
    """Choices a row, for multiple choice."""
    num_duplicates: int = 0
    """Training rows whose input occurs before in the same split."""
    num_leaked: int = 0
    """Evaluation rows whose input occurs in the training split."""
    num_conflicts: int = 0
    """Training rows with the same input and another label."""
    num_unlabelled: int = 0
    """Further rows without labels."""
    adapters: tuple[str, ...] = ()
    """Adapters trained for related tasks that are at hand."""
    teacher: str | None = None
    """A larger model of the same task that is at hand."""
    own_loss: float | None = None
    """Nats a token that the model loses on a sample of the rows before any training: on what it would write, or on the texts
    themselves (of a masked model on masked tokens). The less, the closer they are to what it has seen; None: not known."""
    fingerprint: str = ""
    """A digest of the rows, where there were any to read."""

    def __post_init__(self) -> None:
        raise_all(check_types(self, "data") or [*_too_small(self, "data", _DATA_AT_LEAST), *_unsorted(self)])

    @property
    def mean_tokens(self) -> float:
        """Mean input length in tokens; 0 where no length is known."""
        return sum(self.lengths) / len(self.lengths) if self.lengths else 0.0

    @property
    def max_tokens(self) -> int:
        """Longest known input in tokens."""
        return self.lengths[-1] if self.lengths else 0

    def quantile_tokens(self, share: float) -> int:
        """The smallest length that `share` (0 to 1) of the known rows do not exceed."""
        rank = math.ceil(round(share * len(self.lengths), 6))
        return self.lengths[max(rank, 1) - 1] if self.lengths else 0

    def truncated_share(self, max_length: int) -> float:
        """Share of the known rows that are longer than `max_length` tokens.

        Example:
            >>> DataFacts(num_examples=9, lengths=(8, 10, 12, 30)).truncated_share(10)
            0.5
        """
        return sum(n > max_length for n in self.lengths) / len(self.lengths) if self.lengths else 0.0

    @property
    def infers(self) -> bool:
        """Whether the classes say what follows from what, as in inference between two texts.

        Example:
            >>> DataFacts(num_examples=9, label_names=("entailment", "not_entailment")).infers
            True
        """
        return any(name.lower().startswith(("entail", "contradict")) for name in self.label_names)

    @property
    def examples_per_class(self) -> float | None:
        """Training rows per class, where there are classes."""
        return self.num_examples / self.num_labels if self.num_labels else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """The devices a run may use.

    Raises:
        InvalidError: `hardware-type`, `hardware-negative`.

    Example:
        >>> Hardware(device="cuda", name="24GB", num_devices=2, memory_bytes=24 * 2**30).total_devices
        2
    """

    device: Literal["cpu", "cuda"]
    name: str
    """What to call it in print: a card's name or the user's own words."""
    num_devices: int = 1
    """Devices in one machine."""
    num_machines: int = 1
    memory_bytes: int
    """Memory of one device that a process may use; for `cpu` the host's available memory."""
    bf16: bool = True
    """Whether bfloat16 arithmetic is native."""
    host_memory_bytes: int | None = None
    """Memory of one host; None where unknown."""
    host_cores: int | None = None
    disk_free_bytes: int | None = None
    interconnect: Literal["none", "pcie", "nvlink"] = "none"
    """How devices of one machine talk to each other."""

    def __post_init__(self) -> None:
        raise_all(check_types(self, "hardware") or _too_small(self, "hardware", _HARDWARE_AT_LEAST))

    @property
    def total_devices(self) -> int:
        """Devices over all machines."""
        return self.num_devices * self.num_machines


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The whole question: this model, this data, this task, this hardware, this goal.

    Example:
        >>> Workload(
        ...     model=ModelFacts(name="tiny", config_json="{}", model_type="bert", side="encoder",
        ...                      num_parameters=4_000_000, num_layers=2, hidden_size=128, vocab_size=30522),
        ...     data=DataFacts(num_examples=1000, num_labels=20),
        ...     task=Task.named("sequence-classification"),
        ...     hardware=Hardware(device="cpu", name="cpu", memory_bytes=8 * 2**30),
        ...     goal="fast",
        ... )
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [workload-type] `goal` of `Workload` is 'fast'. Set it to `quality`, ...
    """

    model: ModelFacts
    data: DataFacts
    task: Task
    hardware: Hardware
    goal: Goal = "balanced"
    data_source: str | None = None
    """Path or hub id of the data, where it has one, so that a plan can name it."""
    max_length: int | None = None
    """Truncation length in tokens that the user demanded; None leaves it to the advice."""

    def __post_init__(self) -> None:
        raise_all(check_types(self, "workload"))

    def digest(self) -> str:
        """Sixteen hex digits that change when any fact changes; the same in every process."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_DATA_AT_LEAST = {
    "num_examples": 0, "num_eval_examples": 0, "supervised_tokens": 0, "num_labels": 1, "num_choices": 1,
    "num_duplicates": 0, "num_leaked": 0, "num_conflicts": 0, "num_unlabelled": 0, "own_loss": 0,
}  # fmt: skip
_HARDWARE_AT_LEAST = {
    "num_devices": 1, "num_machines": 1, "memory_bytes": 1, "host_memory_bytes": 1, "host_cores": 1, "disk_free_bytes": 0,
}  # fmt: skip


def _too_small(facts: Any, prefix: str, at_least: dict[str, int]) -> list[Finding]:
    return [
        error(
            f"{prefix}-negative",
            f"`{name}` is {getattr(facts, name)}",
            f"it must be at least {low}",
            f"set `{name}={low}` or more",
        )
        for name, low in at_least.items()
        if getattr(facts, name) is not None and getattr(facts, name) < low
    ]


def _unsorted(facts: DataFacts) -> list[Finding]:
    return [
        error(
            "data-lengths-order",
            f"`{name}` does not ascend",
            "quantiles are read off by position",
            f"pass `{name}=sorted(...)`",
        )
        for name in ("lengths", "target_lengths")
        if list(getattr(facts, name)) != sorted(getattr(facts, name))
    ]
