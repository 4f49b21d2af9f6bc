"""AdapterFusion: what adapters of other tasks know, combined for this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit import adapter_files, adapterhub_fusion, delta_format
from tunekit.bottleneck_config import BottleneckConfig
from tunekit.contracts import Family, Method, Objective, Recipe
from tunekit.discovery import find
from tunekit.errors import TunekitError, UnsupportedError
from tunekit.finding import Finding, error
from tunekit.methods import _adapters as shared
from tunekit.methods import _recipes
from tunekit.structure import head_parameters
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

_COPIES = "adapters"
"""The folder within a saved fusion that holds copies of its adapters."""
_SAME = (
    "is_parallel",
    "original_ln_before",
    "residual_before_ln",
    "mh_adapter",
    "output_adapter",
    "cross_adapter",
    "leave_out",
)
"""The settings that adapters must share to be fused: where they sit and what they read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFusion(Method):
    """Learns for each layer and token which of several saved adapters to listen to; they and the base stay as they are.

    The second of two stages: first one `BottleneckAdapter` for each task, then this on the task that has few rows.
    `tunekit.fusion.mean_weights` reads out which adapter helped in which layer.

    Example:
        >>> method = AdapterFusion(adapters=("runs/sst2", "runs/trec/final"))
        >>> method.names
        ('sst2', 'final')
        >>> AdapterFusion(adapters=("a", "a"))
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [fusion-adapters] adapter 'a' twice: a fusion of an adapter with itself learns nothing. ...

    References:
        Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning, 2021.
    """

    slug: ClassVar[str] = "adapter-fusion"
    title: ClassVar[str] = "AdapterFusion"
    reference: ClassVar[str] = (
        "Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning, 2021"
    )
    family: ClassVar[Family] = "adapters"
    own_format: ClassVar[bool] = True

    adapters: tuple[str, ...] = ()
    """Folders of adapters of the same base, ours or AdapterHub's, with the same variant (widths may differ)."""
    variant: Literal["dynamic", "static"] = "dynamic"
    """`dynamic`: with a value matrix, which starts as the identity; `static`: without, two thirds of the parameters."""
    dropout: float = 0.0
    """Dropout on the scores of the adapters."""
    value_decay: float = 0.01
    """Weight decay of the value matrix towards the identity, in place of the paper's penalty."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the adapters are called: the ends of their folders' names, as long as it takes to tell them apart."""
        parts = [[p for p in Path(a).parts if p not in ("/", ".", "..")] or ["adapter"] for a in self.adapters]
        for depth in range(1, max(map(len, parts), default=1) + 1):
            names = tuple("-".join(p[-depth:]).replace(".", "_") for p in parts)
            if len({*names}) == len(names):
                return names
        return tuple(f"adapter-{i}" for i in range(len(parts)))

    def faults(self) -> list[Finding]:
        """Every value out of its range."""
        found = []
        if twice := next((a for a in self.adapters if self.adapters.count(a) > 1), None):
            why = "a fusion of an adapter with itself learns nothing"
            found.append(error("fusion-adapters", f"adapter {twice!r} twice", why, "name each once"))
        if not 0 <= self.dropout < 1:
            why = "a probability of dropping is at least 0 and below 1"
            found.append(
                error("fusion-dropout", f"`dropout` of `AdapterFusion` is {self.dropout}", why, "set 0.0 to 0.1")
            )
        if self.value_decay < 0:
            seen = f"`value_decay` of `AdapterFusion` is {self.value_decay}"
            found.append(error("fusion-decay", seen, "decay is not below 0", "set 0.01"))
        return found

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses fewer than two adapters, folders that hold none, adapters that differ in place, and odd models."""
        try:
            configs = self._configs(self.adapters)
        except TunekitError as e:
            return e.findings[0]
        return next((f for c in configs if (f := shared.refusal(self.slug, c, model, task))), None)

    def _configs(self, folders: tuple[str, ...]) -> tuple[BottleneckConfig, ...]:
        """The settings of the adapters.

        Raises:
            MissingError: `adapter-missing`.
            UnsupportedError: `fusion-adapters`, `fusion-placement`.
        """
        if len(folders) < 2:
            seen, why = f"`adapters` of `AdapterFusion` with {len(folders)}", "there is nothing to choose between"
            fix = "name the folders of two or more adapters of this base, or use `method: {kind: bottleneck-adapter}`"
            raise UnsupportedError(error("fusion-adapters", seen, why, fix))
        configs = tuple(adapter_files.read_config(Path(folder)) for folder in folders)
        for folder, config in zip(folders[1:], configs[1:], strict=True):
            if odd := [n for n in _SAME if getattr(config, n) != getattr(configs[0], n)]:
                seen = f"adapter {folder!r} with `{odd[0]}: {getattr(config, odd[0])}`"
                why = f"{folders[0]!r} has {getattr(configs[0], odd[0])}, and a fusion combines adapters of one place"
                raise UnsupportedError(error("fusion-placement", seen, why, "train them as the same variant"))
        return configs

    @classmethod
    def candidates(cls, workload: Workload) -> tuple[Method, ...]:
        """The adapters that are at hand, where there are two."""
        return (cls(adapters=workload.data.adapters),) if len(workload.data.adapters) > 1 else ()

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        """None: it needs adapters of the very model."""
        return ()

    def recipe(self, workload: Workload) -> Recipe:
        """Half the rate of the adapters themselves, as in the paper."""
        return Recipe(
            learning_rate=_recipes.adapter_rate(workload) / 2,
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=("Pfeiffer et al., AdapterFusion, 2021: 1e-4 for adapters, 5e-5 for fusions", _recipes.EPOCHS),
        )

    # ------------------------------------------------------------------ on a model
    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """The head."""
        return head_parameters(model, task)

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Puts the adapters and a fusion over them in; the model itself is returned.

        Raises:
            MissingError: `adapter-missing`.
            UnreadableError: `adapter-corrupted`, `adapter-pickled`.
            UnsupportedError: `adapter-sites`, `adapter-location`, `adapter-wrong-base`, `fusion-placement`.
        """
        return self._apply(model, task, self.adapters)

    def _apply(self, model: nn.Module, task: Task, folders: tuple[str, ...]) -> nn.Module:
        from tunekit import bottleneck, fusion

        heads, configs = head_parameters(model, task), self._configs(folders)
        shared.prepare_sites(self.slug, configs[0], model)
        for name, config, folder in zip(self.names, configs, folders, strict=True):
            bottleneck.put_adapter(model, name, config)
            adapter_files.fill(model, Path(folder), name, task, with_head=False)
        fusion.put_fusion(model, self.names, self.variant == "dynamic", self.dropout)
        return shared.let_learn(model, heads | fusion.learnt_by_fusion(model))

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The usual groups, with the value matrices' own decay."""
        values = {id(p) for n, p in model.named_parameters() if n.endswith(".value_change")}
        result = []
        # Not `super()`: a dataclass with slots is made twice, and the first is the one that it would name.
        for group in Method.parameter_groups(self, model, learning_rate, weight_decay):
            own = [p for p in group["params"] if id(p) in values]
            rest = [p for p in group["params"] if id(p) not in values]
            decay = max(weight_decay, self.value_decay)
            split = [{**group, "params": rest}, {**group, "params": own, "weight_decay": decay}]
            result += [g for g in split if g["params"]]
        return result

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Our own format: the fusion and the head, with copies of the adapters in folders of their own."""
        from tunekit import bottleneck

        state = model.state_dict() if state_dict is None else state_dict
        for name in self.names:
            single: Any = find("method", "bottleneck-adapter")
            method = single.of_config(bottleneck.config_of(model, name))
            own = bottleneck.parameters_of(model, name)
            delta_format.save(model, folder / _COPIES / name, method, own, state)
        delta_format.save(model, folder, self, self.trainable_names(model), state)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Puts a saved fusion with its adapters and head on a fresh base; reads AdapterHub's folders too."""
        if adapterhub_fusion.holds(folder):
            model = self._apply(model, task, self.adapters)
            adapterhub_fusion.load_into(model, folder, task)
            return model
        copies = tuple(str(folder / _COPIES / name) for name in self.names)
        model = self._apply(model, task, copies if all(Path(c).is_dir() for c in copies) else self.adapters)
        delta_format.load_into(model, folder, self.trainable_names(model))
        return model

    @classmethod
    def of_setup(cls, folder: Path) -> AdapterFusion:
        """The fusion that AdapterHub's `save_adapter_setup` wrote into a folder."""
        saved = adapterhub_fusion.read_setup(folder)
        return cls(
            adapters=tuple(str(folder / n) for n in saved.names), variant="dynamic" if saved.has_value else "static"
        )
