"""BitFit: only the bias vectors learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tunekit import delta_format
from tunekit.contracts import Family, Method, Objective, Recipe
from tunekit.finding import Finding, error
from tunekit.methods import _recipes
from tunekit.structure import bias_names, head_parameters
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class BitFit(Method):
    """Trains every bias vector and the task's head: less than a thousandth of the model, and the smallest folder.

    It needs an architecture that has biases; Llama, Mixtral, T5, Gemma and ModernBERT have none.

    Example:
        >>> BitFit().to_dict()
        {'kind': 'bitfit'}

    References:
        Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models,
        2022.
    """

    slug: ClassVar[str] = "bitfit"
    title: ClassVar[str] = "BitFit"
    reference: ClassVar[str] = "Ben Zaken et al., BitFit, 2022"
    family: ClassVar[Family] = "partial"
    merges: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True
    own_format: ClassVar[bool] = True

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses models without biases, and quantised ones (transformers trains those through PEFT only)."""
        if not model.has_bias:
            return error(
                "bitfit-no-bias", f"method bitfit on {model.name}", f"a `{model.model_type}` model has no bias parameters",
                "use `method: {kind: lora, r: 4}`, which learns about as little",
            )  # fmt: skip
        if quantization is not None:
            return error(
                "method-quantized", f"method bitfit on a {quantization} base", "transformers' Trainer trains a quantised base through PEFT only",
                "use `method: {kind: lora}`, or `quantization: null`",
            )  # fmt: skip
        return None

    def recipe(self, workload: Workload) -> Recipe:
        """LoRA's rate for the model's size: ten times that of full fine-tuning, within the paper's 1e-4 to 1e-3."""
        return Recipe(
            learning_rate=_recipes.adapter_rate(workload),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=("Ben Zaken et al., BitFit, 2022: 1e-4 to 1e-3 on BERT", _recipes.EPOCHS),
        )

    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """The biases and the head."""
        return head_parameters(model, task) | frozenset(bias_names(model))

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Lets the biases and the head learn, and nothing else."""
        learnt = self.base_values_changed(model, task)
        for name, p in model.named_parameters():
            p.requires_grad_(name in learnt)
        return model

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Our own format: the biases and the head."""
        delta_format.save(model, folder, self, self.trainable_names(model), state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Copies saved biases and head into a fresh base."""
        model = self.apply(model, task)
        delta_format.load_into(model, folder, self.trainable_names(model))
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: what was learnt is in its weights."""
        return model
