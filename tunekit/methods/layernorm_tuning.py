"""LayerNorm tuning: only the normalisation layers learn, by PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit import peft_format
from tunekit.contracts import Family, Method, Objective, Recipe
from tunekit.errors import UnsupportedError, raise_all
from tunekit.finding import Finding, error
from tunekit.methods import _adapted, _recipes
from tunekit.methods._lora_targets import own_modules, shortened
from tunekit.structure import head_modules
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNormTuning(Method):
    """Trains copies of all normalisation layers, LayerNorm or RMSNorm, and the task's head; nothing else.

    The copies stand in for the base's own, so the base stays as it is, quantised or not, and merging only takes the
    copies over.

    Example:
        >>> LayerNormTuning().to_dict()
        {'kind': 'layernorm-tuning', 'modules_to_save': []}

    References:
        Zhao et al., Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning, 2023.
    """

    slug: ClassVar[str] = "layernorm-tuning"
    title: ClassVar[str] = "LayerNorm tuning"
    reference: ClassVar[str] = "Zhao et al., Tuning LayerNorm in Attention, 2023"
    family: ClassVar[Family] = "rescaling"
    merges: ClassVar[bool] = True

    modules_to_save: tuple[str, ...] = ()
    """Further modules to train whole, by the ends of their names; the task's head always is."""

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Works wherever there are norms, which only the live model shows."""
        return None

    def recipe(self, workload: Workload) -> Recipe:
        """LoRA's rate for the model's size, and five times that for understanding with smaller models."""
        small = workload.task.has_head and workload.model.num_parameters < 10**9
        return Recipe(
            learning_rate=(5 if small else 1) * _recipes.adapter_rate(workload),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=(
                "measured with MiniLM on 770 rows of 20 intents, 290 steps: 0.77 at 1e-3, 0.82 at 5e-3",
                _recipes.TEN_TIMES,
                _recipes.EPOCHS,
            ),
        )

    # ------------------------------------------------------------------ on a model
    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Wraps the model as a `PeftModel`.

        Raises:
            UnsupportedError: `layernorm-tuning-no-norm`.
            InvalidError: `layernorm-tuning-module-missing`.
        """
        from peft import LNTuningConfig

        saved = [*head_modules(model, task), *self.modules_to_save]
        raise_all(_adapted.unknown_modules(model, self.slug, self.modules_to_save))
        names = _adapted.norms(model, saved)
        if not names:
            raise UnsupportedError(
                error(
                    "layernorm-tuning-no-norm", f"method {self.slug} on a {type(model).__name__}",
                    "it has no normalisation layer with weights", "use `method: {kind: ia3}`, which learns about as little",
                )
            )  # fmt: skip
        config = LNTuningConfig(
            task_type=None if task.name == "question-answering" else task.peft_task_type,
            target_modules=shortened(model, names, saved),
            modules_to_save=saved or None,
        )
        return peft_format.wrap(model, config)

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """PEFT's folder."""
        peft_format.save(model, folder, state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """PEFT's `from_pretrained`, refused where anything does not fit."""
        return peft_format.load(model, folder)

    def merge(self, model: nn.Module) -> nn.Module:
        """Puts the trained norms and the trained head in the place of the base's."""
        return _adapted.merged(model)

    @classmethod
    def from_peft(cls, config: Any) -> Method | None:
        """An `LNTuningConfig` in our terms; which norms it names is in its folder."""
        if str(getattr(config.peft_type, "value", config.peft_type)) != "LN_TUNING":
            return None
        return cls(modules_to_save=own_modules(config))
