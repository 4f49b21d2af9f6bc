"""Full fine-tuning: every parameter learns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tunekit.contracts import Family, Method, Objective, Recipe
from tunekit.delta_format import raise_mismatch, reason, wrong_base
from tunekit.errors import UnreadableError, UnsupportedError
from tunekit.finding import Finding, error
from tunekit.methods import _recipes
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Full(Method):
    """Trains every parameter: the most capacity, the most memory, and a copy of the model for every task.

    What is saved is the whole model, as transformers saves it.

    Example:
        >>> Full().to_dict()
        {'kind': 'full'}

    References:
        Howard & Ruder, Universal Language Model Fine-tuning for Text Classification, 2018; Devlin et al., BERT, 2019.
    """

    slug: ClassVar[str] = "full"
    title: ClassVar[str] = "Full fine-tuning"
    reference: ClassVar[str] = "Devlin et al., BERT, 2019"
    family: ClassVar[Family] = "full"
    merges: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses a quantised base: its weights cannot be trained."""
        if quantization is None:
            return None
        return error(
            "method-quantized", f"method full on a {quantization} base", "quantised weights cannot be trained",
            "use `method: {kind: lora}`, or `quantization: null`",
        )  # fmt: skip

    def recipe(self, workload: Workload) -> Recipe:
        """A tenth of LoRA's rate for the model's size; long warm-up and many epochs on small sets."""
        large = workload.model.side == "decoder" and workload.model.num_parameters >= 10**9
        return Recipe(
            learning_rate=_recipes.full_rate(workload),
            num_train_epochs=_recipes.epochs(workload),
            lr_scheduler_type="cosine" if large else "linear",
            warmup=_recipes.warmup(workload),
            weight_decay=0.1 if large else 0.01,
            sources=(_recipes.TEN_TIMES, _recipes.LORA_RATES, _recipes.EPOCHS, _recipes.SMALL_DATA),
        )

    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """Every parameter."""
        return frozenset(name for name, _ in model.named_parameters())

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Lets every parameter learn; tables of positions that the model was built with fixed (sines) stay fixed."""
        for name, p in model.named_parameters():
            fixed = not p.requires_grad and "position" in name
            p.requires_grad_(p.is_floating_point() and not fixed)
        return model

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes the whole model as transformers does; `AutoModelFor...from_pretrained` reads it."""
        model.save_pretrained(folder, state_dict=state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Copies a saved model's weights into this one.

        Raises:
            UnsupportedError: `adapter-wrong-base`.
            UnreadableError: `adapter-corrupted`.
        """
        from safetensors import SafetensorError

        self.apply(model, task)
        try:
            # The base's own configuration: BART's reads back with three labels whatever was saved (transformers 5.23).
            saved, info = type(model).from_pretrained(
                str(folder), config=copy.deepcopy(model.config), local_files_only=True, use_safetensors=True, output_loading_info=True
            )  # fmt: skip
        except SafetensorError as e:
            raise UnreadableError(
                error("adapter-corrupted", str(folder), reason(e), "save it again, or fetch an intact copy")
            ) from None
        except (ValueError, RuntimeError, OSError, KeyError) as e:
            raise UnsupportedError(wrong_base(folder, reason(e))) from None
        for what, where in (("missing_keys", "folder"), ("unexpected_keys", "model")):
            if names := sorted(info[what]):
                raise UnsupportedError(wrong_base(folder, f"{names[0]} is not in the {where}"))
        have, want = saved.state_dict(), model.state_dict()
        raise_mismatch(
            folder, {k: tuple(v.shape) for k, v in have.items()}, {k: tuple(v.shape) for k, v in want.items()}
        )
        model.load_state_dict(have)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: what was learnt is in its weights."""
        return model
