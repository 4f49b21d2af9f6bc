"""Partial fine-tuning: the last layers, or the parameters whose names match."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit import delta_format
from tunekit.contracts import OWN_MODULE, Family, Method, Objective, Recipe
from tunekit.discovery import find
from tunekit.errors import raise_all
from tunekit.finding import Finding, error
from tunekit.methods import _recipes
from tunekit.snapshot import prepared
from tunekit.structure import blocks, decayed_names, head_parameters, levels, norms_beside, unwrapped
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import TrainerCallback


@dataclass(frozen=True, kw_only=True, slots=True)
class Partial(Method):
    """Trains the last layers with the norm that follows them and the task's head; the layers below stay frozen.

    Backward stops at the lowest layer that learns, so that it is the cheapest way to move whole weights. For seq2seq
    models the last layers are the decoder's.

    The layers need not start together nor learn alike: `Partial(last_layers=12, patterns=("embeddings",),
    layer_lr_decay=2.6, unfreeze_every=1)` is ULMFiT's schedule for all of a BERT, one layer more in each epoch.

    Example:
        >>> Partial(last_layers=0)
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [partial-layers] `last_layers` of `Partial` is 0: at least one layer must learn. ...

    References:
        Howard & Ruder, Universal Language Model Fine-tuning for Text Classification, 2018. Lee et al., What Would Elsa
        Do? Freezing Layers During Transformer Fine-Tuning, 2019: a quarter of BERT's layers reaches 90 % of its gain.
    """

    slug: ClassVar[str] = "partial"
    title: ClassVar[str] = "Partial fine-tuning"
    reference: ClassVar[str] = "Lee et al., What Would Elsa Do?, 2019"
    family: ClassVar[Family] = "partial"
    merges: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True
    own_format: ClassVar[bool] = True

    last_layers: int | None = 2
    """How many of the last layers learn; null: none but those that `patterns` names."""
    patterns: tuple[str, ...] = ()
    """Regular expressions; a parameter learns too whose name one of them matches anywhere, such as `layer.1[01].attention`."""
    layer_lr_decay: float = 1.0
    """Discriminative rates: each layer learns this many times slower than the one above it, 2.6 in ULMFiT; the head learns
    at the plan's rate, the last layer at that divided by this once. 1: all alike."""
    unfreeze_every: float | None = None
    """Gradual unfreezing: the head starts alone (without a head the last layer), and after every so many epochs (or
    steps) the next lower layer joins, 1 epoch in ULMFiT; null: all learn from the start."""
    unfreeze_unit: Literal["epochs", "steps"] = "epochs"
    """What `unfreeze_every` counts: passes over the rows, or optimizer steps."""

    def faults(self) -> list[Finding]:
        """Nothing to train, patterns that are none, and schedules that are none."""
        found = self._schedule_faults()
        if self.last_layers is not None and self.last_layers < 1:
            found.append(
                error(
                    "partial-layers",
                    f"`last_layers` of `Partial` is {self.last_layers}",
                    "at least one layer must learn",
                    "set 1 or more, or null with `patterns`",
                )
            )
        if self.last_layers is None and not self.patterns:
            found.append(
                error(
                    "partial-nothing",
                    "`Partial` without `last_layers` and `patterns`",
                    "nothing would learn but the head",
                    "set `last_layers: 2`",
                )
            )
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as e:
                found.append(
                    error(
                        "partial-pattern",
                        f"`patterns` {pattern!r} of `Partial`",
                        f"no regular expression ({e})",
                        "escape its special characters",
                    )
                )
        return found

    def _schedule_faults(self) -> list[Finding]:
        found = []
        if self.layer_lr_decay < 1:
            seen, why = (
                f"`layer_lr_decay` of `Partial` is {self.layer_lr_decay}",
                "it divides, so that lower layers learn slower",
            )
            fix = f"set {1 / self.layer_lr_decay:.3g}" if self.layer_lr_decay > 0 else "set 1.0 to 2.6"
            found.append(error("partial-lr-decay", seen, why, fix))
        every, unit = self.unfreeze_every, self.unfreeze_unit
        if every is not None and (every <= 0 or (unit == "steps" and every % 1)):
            seen, why = f"`unfreeze_every: {every}` {unit}", "it is a length above 0, and steps are whole"
            found.append(error("partial-unfreeze", seen, why, "set 1 (epochs), or null"))
        return found

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses a quantised base, more layers than there are, layers that are all one (ALBERT), and a schedule on shards."""
        if self.unfreeze_every is not None and sharding not in (None, "ddp"):
            return error(
                "partial-unfreeze-sharding", f"`unfreeze_every` with `sharding: {sharding}`", "what learns is laid out over the devices once, at the start",
                "set `unfreeze_every: null` (`layer_lr_decay` works), or `sharding: ddp`",
            )  # fmt: skip
        if quantization is not None:
            return error(
                "method-quantized", f"method partial on a {quantization} base", "quantised weights cannot be trained",
                "use `method: {kind: lora}`, or `quantization: null`",
            )  # fmt: skip
        groups = model.config.get("num_hidden_groups")
        if self.last_layers is not None and isinstance(groups, int) and groups < self.last_layers:
            return error(
                "partial-shared-layers", f"`last_layers: {self.last_layers}` on {model.name}", "its layers share one set of weights",
                "use `method: {kind: full}` or `{kind: lora}`",
            )  # fmt: skip
        if self.last_layers is not None and 0 < model.num_layers < self.last_layers:
            return _too_many(self.last_layers, model.num_layers)
        return None

    def frozen_layers(self, model: ModelFacts) -> int:
        """All but the last; what `patterns` names may lie anywhere."""
        return 0 if self.patterns or self.last_layers is None else max(0, model.num_layers - self.last_layers)

    def recipe(self, workload: Workload) -> Recipe:
        """Full fine-tuning's rate."""
        return Recipe(
            learning_rate=_recipes.full_rate(workload),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            weight_decay=0.01,
            sources=(_recipes.TEN_TIMES, _recipes.LORA_RATES, _recipes.EPOCHS, _recipes.SMALL_DATA),
        )

    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """What learns."""
        prefixes = tuple(f"{name}." for name in _last(model, self.last_layers)) if self.last_layers else ()
        patterns = [re.compile(p) for p in self.patterns]
        chosen = {
            name
            for name, p in model.named_parameters()
            if p.is_floating_point()
            and ((prefixes and name.startswith(prefixes)) or any(p.search(name) for p in patterns))
        }
        return frozenset(chosen) | head_parameters(model, task)

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Lets those parameters learn and no others.

        Raises:
            InvalidError: `partial-layers`, `partial-pattern`.
        """
        raise_all(self._model_faults(model))
        learnt = self.base_values_changed(model, task)
        for name, p in model.named_parameters():
            p.requires_grad_(name in learnt)
        return model

    def _model_faults(self, model: nn.Module) -> list[Finding]:
        names = [name for name, _ in model.named_parameters()]
        found = [
            error(
                "partial-pattern",
                f"`patterns` {p!r} of `Partial`",
                "it matches no parameter of this model",
                f"names look like {names[len(names) // 2]}",
            )
            for p in self.patterns
            if not any(re.search(p, n) for n in names)
        ]
        if self.last_layers is not None:
            lists = blocks(model)
            have = len(lists[-1][1]) if lists else 0
            found += [_too_many(self.last_layers, have)] if self.last_layers > have else []
        return found

    def trainable_names(self, model: nn.Module) -> frozenset[str]:
        """What will ever learn, those included whose turn has not come."""
        what = prepared(model)
        if what is None:
            return frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        changed = self.base_values_changed(unwrapped(model), what.task)
        return frozenset(name for name in changed if OWN_MODULE not in name.split("."))

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """One group a layer where they learn at different rates; no decay on biases and norms."""
        model = unwrapped(model)
        learnt, decayed = self.trainable_names(model), decayed_names(model)
        level = levels(model) if self.layer_lr_decay > 1 else {}
        split: dict[tuple[int, float], list[Any]] = {}
        for name, p in model.named_parameters():
            if name in learnt:
                split.setdefault((level.get(name, 0), weight_decay if name in decayed else 0.0), []).append(p)
        return [
            {"params": ps, "lr": learning_rate / self.layer_lr_decay**low, "weight_decay": decay}
            for (low, decay), ps in split.items()
        ]

    def callbacks(self) -> tuple[TrainerCallback, ...]:
        """The schedule of gradual unfreezing, where one is set."""
        if self.unfreeze_every is None:
            return ()
        return (find("callback", "gradual-unfreezing")(every=self.unfreeze_every, unit=self.unfreeze_unit),)

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Our own format: what learnt."""
        delta_format.save(model, folder, self, self.trainable_names(model), state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Copies what was saved into a fresh base."""
        model = self.apply(model, task)
        delta_format.load_into(model, folder, self.trainable_names(model))
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: what was learnt is in its weights."""
        return model


def _too_many(wanted: int, have: int) -> Finding:
    return error("partial-layers", f"`last_layers: {wanted}`", f"the model has {have}", f"set at most {have}")


def _last(model: nn.Module, count: int) -> list[str]:
    """Dotted names of the last `count` layers of the last stack, and of the norms that follow it."""
    stacks = blocks(model)
    if not stacks:
        return []
    name, layers = stacks[-1]
    return [*(f"{name}.{i}" for i in range(max(0, len(layers) - count), len(layers))), *norms_beside(model, name)]
