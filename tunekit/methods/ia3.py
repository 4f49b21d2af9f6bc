"""IA3: learnt factors on the keys, the values and the feed-forward networks, by PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit import peft_format
from tunekit.contracts import Family, Method, Objective, Recipe
from tunekit.errors import raise_all
from tunekit.finding import Finding, error
from tunekit.methods import _adapted, _head_rate, _recipes
from tunekit.methods._lora_targets import in_head, is_transposed, outside, own_modules, shortened, targets
from tunekit.structure import head_modules, is_linear
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class IA3(Method):
    """Learns one factor for each key, value and inner feed-forward activation: ten times less than a small LoRA.

    The factors start at one, so that the model starts as it was. Which layers: by the model's structure. Where one
    layer makes queries, keys and values together, its queries get factors too, which change nothing that those of the
    keys could not. Fused experts (Mixtral) have no layer to put a factor on; there attention alone learns.

    Example:
        >>> IA3(target_modules=("k_proj", "v_proj"), feedforward_modules=()).to_dict()["feedforward_modules"]
        []

    References:
        Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, 2022.
    """

    slug: ClassVar[str] = "ia3"
    title: ClassVar[str] = "IA3"
    reference: ClassVar[str] = "Liu et al., Few-Shot Parameter-Efficient Fine-Tuning (T-Few), 2022"
    family: ClassVar[Family] = "rescaling"
    merges: ClassVar[bool] = True

    target_modules: str | tuple[str, ...] | None = None
    """Which layers: None for keys, values and the second feed-forward layer, as in the paper; `all-linear`; `attention`;
    a regular expression that matches whole names; or the ends of names such as `("k_proj", "v_proj", "down_proj")`."""
    feedforward_modules: str | tuple[str, ...] | None = None
    """Those of them whose input is scaled instead of their output: None for the second feed-forward layers; a regular
    expression or the ends of names."""
    modules_to_save: tuple[str, ...] = ()
    """Further modules to train whole, by the ends of their names; the task's head always is."""
    head_lr_ratio: float | None = None
    """Learning rate of the task's head over that of the factors; None: 0.1, since the head is made of weights."""

    def faults(self) -> list[Finding]:
        """Every value out of its range."""
        return _head_rate.faults(self)

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Works everywhere."""
        return None

    def recipe(self, workload: Workload) -> Recipe:
        """Rates far above those of weights, since a factor starts at one and moves little."""
        seq2seq = workload.model.side == "seq2seq"
        return Recipe(
            learning_rate=3e-3 if seq2seq else _head_rate.direct_rate(workload),
            num_train_epochs=_recipes.epochs(workload),
            effective_batch_size=8 if seq2seq else 16,
            warmup=_recipes.warmup(workload),
            sources=(
                "Liu et al., T-Few, 2022: 3e-3, 1,000 steps of 8 rows, 6 % warm-up (T0 of 3B and 11B)",
                "PEFT method comparison benchmark: 5e-3 far above 1e-4 on a decoder of 3B",
                _head_rate.RATES,
                _recipes.EPOCHS,
            ),
        )

    # ------------------------------------------------------------------ on a model
    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Wraps the model as a `PeftModel`.

        Raises:
            InvalidError: `ia3-target-missing`, `ia3-target-head`, `ia3-target-kind`, `ia3-feedforward`, ...
        """
        saved = [*head_modules(model, task), *self.modules_to_save]
        chosen, inner = self._chosen(model)
        raise_all(self._model_faults(model, chosen, inner, saved))
        chosen, inner = outside(chosen, saved), outside(inner, saved)
        return peft_format.wrap(model, self._config(model, task, chosen, inner, saved))

    def _chosen(self, model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All layers that get factors, and those among them that get them on their input."""
        second = _adapted.second_feedforward(model)
        if self.feedforward_modules is not None:
            second = targets(model, self.feedforward_modules)
        if self.target_modules is None:
            return tuple(dict.fromkeys([*_adapted.keys_and_values(model), *second])), second
        chosen = targets(model, self.target_modules)
        return chosen, second if self.feedforward_modules is not None else tuple(n for n in second if n in chosen)

    def _model_faults(
        self, model: nn.Module, chosen: Sequence[str], inner: Sequence[str], saved: Sequence[str]
    ) -> list[Finding]:
        no_layers = error("ia3-target-missing", "`target_modules`", "this model has no linear layer in its blocks", "name modules by hand")  # fmt: skip
        odd = [n for n in chosen if not is_linear(model.get_submodule(n))]
        loose = [n for n in inner if n not in chosen]
        why, fix = "only a layer that gets factors can get them on its input", "add it to `target_modules`"
        return [
            *([no_layers] if not chosen and self.target_modules is None else []),
            *_adapted.missing(model, self.slug, "target_modules", _own(self.target_modules), chosen),
            *_adapted.missing(model, self.slug, "feedforward_modules", self.feedforward_modules, inner),
            *in_head(self.slug, self.target_modules, chosen, saved),
            *_adapted.unknown_modules(model, self.slug, self.modules_to_save),
            *(error("ia3-target-kind", f"`target_modules` matches {n}", f"a {type(model.get_submodule(n)).__name__} is no linear layer", "name the layers inside it") for n in odd[:3]),
            *(error("ia3-feedforward", f"`feedforward_modules` matches {n}", why, fix) for n in loose[:3]),
        ]  # fmt: skip

    def _config(
        self, model: nn.Module, task: Task, chosen: Sequence[str], inner: Sequence[str], saved: Sequence[str]
    ) -> Any:
        """PEFT's configuration of this, with the targets as names that plain PEFT finds again."""
        from peft import IA3Config

        short, ends = shortened(model, chosen, saved), sorted({n.rsplit(".", 1)[-1] for n in inner})
        # PEFT compares the ends of whole names, not of their parts, and wants each among the targets.
        alike = {n for n in chosen if n.endswith(tuple(ends))} if ends else set()
        if alike != set(inner) or not set(ends) <= set(short):
            short, ends = list(chosen), list(inner)
        return IA3Config(
            task_type=None if task.name == "question-answering" else task.peft_task_type,
            target_modules=short,
            feedforward_modules=ends,
            modules_to_save=list(saved) or None,
            fan_in_fan_out=is_transposed(model, chosen),
        )

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The usual groups; the head learns `head_lr_ratio` times as fast as the factors."""
        return _head_rate.groups(self, model, learning_rate, weight_decay, direct=True)

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """PEFT's folder."""
        peft_format.save(model, folder, state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """PEFT's `from_pretrained`, refused where anything does not fit."""
        return peft_format.load(model, folder)

    def merge(self, model: nn.Module) -> nn.Module:
        """Multiplies the factors into the base's weights and biases; the trained head takes its place."""
        return _adapted.merged(model)

    @classmethod
    def from_peft(cls, config: Any) -> Method | None:
        """An `IA3Config` in our terms, where it names its layers."""
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind != "IA3" or config.target_modules is None or config.feedforward_modules is None:
            return None
        if config.exclude_modules:
            return None
        return cls(
            target_modules=_plain(config.target_modules),
            feedforward_modules=_plain(config.feedforward_modules),
            modules_to_save=own_modules(config),
        )


def _own(wanted: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """What names modules itself; the words for a choice by structure are no names."""
    return None if wanted in ("all-linear", "attention") else wanted


def _plain(names: Any) -> str | tuple[str, ...]:
    return names if isinstance(names, str) else tuple(sorted(names))
