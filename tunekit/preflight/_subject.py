"""Subject: what a check may look at, read once; Row: one training row as the model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

IGNORED = -100
"""The label that every loss of transformers skips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row after the collator, alone in its batch."""

    ids: tuple[int, ...] = ()
    """Input tokens that are attended to."""
    labels: Any = None
    """A tuple, one label a position (of the attended ones, where they are as many), or a single label; None without."""

    @property
    def by_position(self) -> bool:
        """Whether each position has a label of its own, as where text is written or tokens are classified."""
        return isinstance(self.labels, tuple)

    @property
    def trained(self) -> int:
        """How many positions the loss counts."""
        return sum(x != IGNORED for x in self.labels) if isinstance(self.labels, tuple) else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A run that is about to begin. What is not known is None or empty, and the checks that need it stay silent."""

    model: nn.Module
    args: Any
    """`TrainingArguments`."""
    tokenizer: Any = None
    optimizer: Any = None
    """None while the Trainer has not made it."""
    train: tuple[Row, ...] = ()
    """Up to 256 rows, evenly spaced."""
    batch: Mapping[str, Any] | None = None
    """The shortest and the longest of these together."""
    raw: tuple[Mapping[str, Any], ...] = ()
    """The same rows before the collator, with every column."""
    num_train: int | None = None
    num_eval: int | None = None
    train_keys: tuple[int, ...] = ()
    """A digest of the input of each of up to 20,000 training rows."""
    eval_keys: tuple[int, ...] = ()
    """Likewise of up to 5,000 rows to evaluate on."""
    class_names: tuple[str, ...] = ()
    """Names of the classes by the dataset's own account."""
    keeps_logits: bool | None = None
    """Whether the evaluation holds on to every logit; None where that cannot be seen."""
    takes_loss_arguments: bool | None = None
    """Whether the loss is told how many items a whole step counts."""
    begins: bool = True
    """Whether the run starts at step 0."""
    resumes_from: Path | None = None
    """The checkpoint that the run goes on from."""
    fingerprint: str | None = None
    """A digest of the training rows, where the run goes on from a checkpoint."""
    memory: Any = None
    """A `MemoryEstimate`, where one was made."""
    device_bytes: int | None = None
    """Memory of the device that it is held against."""

    @property
    def task_model(self) -> nn.Module:
        """The transformers model, out of every wrapper."""
        from tunekit.structure import task_model

        return task_model(self.model)

    @property
    def config(self) -> Any:
        """Its configuration, of the text part where there are several; None for a model that has none."""
        config: Any = getattr(self.task_model, "config", None)
        return config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config

    @property
    def writes(self) -> bool:
        """Whether the model writes text: its labels are tokens."""
        able = getattr(self.task_model, "can_generate", None)
        return bool(able and able())

    @property
    def classifies(self) -> bool:
        """Whether the labels are classes or figures."""
        model = self.task_model
        output = getattr(model, "get_output_embeddings", lambda: None)()
        return not self.writes and output is None and getattr(self.config, "num_labels", None) is not None

    @property
    def peft_config(self) -> Any:
        """PEFT's configuration of the active adapter; None for other models."""
        from tunekit.structure import unwrapped

        model = unwrapped(self.model)
        known = getattr(model, "peft_config", None)
        active = getattr(model, "active_adapter", None)
        if not known or not hasattr(model, "base_model"):
            return None
        return known.get(active) if isinstance(active, str) else next(iter(known.values()))
