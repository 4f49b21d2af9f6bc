"""P-tuning v2: learnt keys and values in front of every attention, for tasks of understanding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit.contracts import Family, Method, Objective, Recipe
from tunekit.finding import Finding
from tunekit.methods import _deep_prompts as shared
from tunekit.methods import _head_rate, _recipes
from tunekit.structure import head_parameters
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class PTuningV2(Method):
    """Deep prompts for understanding: prefix-tuning without a network in between, beside a trained head.

    Example:
        >>> PTuningV2(encoder_hidden_size=512)
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [p-tuning-v2-hidden] `encoder_hidden_size` of `PTuningV2` without `prefix_projection`: ...

    References:
        Liu et al., P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks, 2022.
    """

    slug: ClassVar[str] = "p-tuning-v2"
    title: ClassVar[str] = "P-tuning v2"
    reference: ClassVar[str] = "Liu et al., P-Tuning v2, 2022"
    family: ClassVar[Family] = "prompts"
    own_format: ClassVar[bool] = True

    num_virtual_tokens: int = 20
    """Length of the prompts: up to 20 for simple classification, about 100 for tagging and questions."""
    prefix_projection: bool = False
    """Whether a two-layer network makes the prompts while it learns; helps on some tasks and harms on others (Liu et al.)."""
    encoder_hidden_size: int | None = None
    """Width of that network's hidden layer; None: the keys' width."""
    positions: shared.Positions | None = None
    """Where the first real token stands: `shifted` behind the prompts, as PEFT and the authors have it, or `natural`,
    where it stood in pretraining; None: shifted where PEFT can read what is saved, otherwise natural."""
    head_lr_ratio: float | None = None
    """Learning rate of the task's head over that of the prompts; None: 0.1 where prompts are learnt themselves, 10 where a network makes them."""

    def faults(self) -> list[Finding]:
        """Every value out of its range."""
        return [*_head_rate.faults(self), *shared.value_faults(self)]

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses models whose attention others cannot reach."""
        return shared.refusal(self, model)

    def recipe(self, workload: Workload) -> Recipe:
        """Rates far above those of weights: the prompts start at random and little is learnt."""
        return Recipe(
            learning_rate=(_head_rate.network_rate if self.prefix_projection else _head_rate.direct_rate)(workload),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=(
                "Liu et al., P-Tuning v2, 2022: 5e-3 to 1e-2",
                _head_rate.NETWORK_RATES if self.prefix_projection else _head_rate.RATES,
                _recipes.EPOCHS,
            ),
        )

    # ------------------------------------------------------------------ on a model
    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """The head."""
        return head_parameters(model, task)

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Puts the prompts in front; the model itself is returned.

        Raises:
            UnsupportedError: `own-attention`, `attention-kernel`, `prefix-positions`, `prompt-too-long`.
        """
        return shared.apply(self, model, task)

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The usual groups; the head learns `head_lr_ratio` times as fast as the prompts."""
        return _head_rate.groups(self, model, learning_rate, weight_decay, direct=not self.prefix_projection)

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """The keys and values themselves, in PEFT's files where PEFT gives the same logits."""
        shared.save(self, model, folder, state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Puts saved prompts and the head on a fresh base."""
        return shared.load_into(self, self.apply(model, task), folder)
