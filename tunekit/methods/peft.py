"""Any other of PEFT's adapters: its own configuration, with our checks around it."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit import peft_format
from tunekit.contracts import Family, Method, Objective, Recipe
from tunekit.delta_format import reason
from tunekit.discovery import find
from tunekit.errors import TunekitError, UnsupportedError, raise_all
from tunekit.finding import Finding, error, nearest
from tunekit.methods import _adapted, _recipes
from tunekit.methods._lora_targets import in_head, is_transposed, outside, own_modules, shortened, targets, too_high
from tunekit.structure import bias_names, head_modules, is_linear, linear_names
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import TrainerCallback

_PROMPTS = {
    "PROMPT_TUNING": "prompt-tuning", "MULTITASK_PROMPT_TUNING": "prompt-tuning", "CPT": "prompt-tuning",
    "P_TUNING": "p-tuning", "PREFIX_TUNING": "prefix-tuning", "CARTRIDGE": "prefix-tuning",
}  # fmt: skip
"""PEFT's soft prompts and ours, which work on every task."""

_RENAMED = {"BONE": "MISS"}
"""What PEFT has given another name, with the same settings."""

_INPUTS = {"POLY": "every row would have to name its task (`task_ids`)"}
"""Types whose forward pass wants more than a row of the task has."""

_NOTES = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""What a configuration says of where it came from; no settings."""

_ON_NO_LINEAR = ("LN_TUNING", "TRAINABLE_TOKENS")
"""Types that sit on norms and embeddings, which no quantisation touches."""

_RANKS = {"LORA": "r", "ADALORA": "init_r", "DELORA": "r", "HIRA": "r"}
"""The setting that is the rank of a product of two matrices, by type; in others `r` is a size that may be larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peft(Method):
    """Passes a PEFT configuration of any type through, with the task's head trained and saved beside it.

    Types that tunekit has itself are better asked for by name: `lora`, `ia3`, `layernorm-tuning`. Soft prompts are
    refused before a run, since PEFT's fail on most tasks; use `prompt-tuning`, `p-tuning` or `prefix-tuning`. AdaLoRA needs its
    `total_step` to be the run's number of steps; the callback that redistributes its ranks comes along.

    Example:
        >>> from peft import LoHaConfig
        >>> Peft(config=LoHaConfig(r=4, target_modules=["q_proj", "v_proj"])).to_dict()["config"]
        {'peft_type': 'LOHA', 'r': 4, 'target_modules': ['q_proj', 'v_proj']}

    References:
        Mangrulkar et al., PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods, 2022.
    """

    slug: ClassVar[str] = "peft"
    title: ClassVar[str] = "Another PEFT adapter"
    reference: ClassVar[str] = "Mangrulkar et al., PEFT, 2022"
    family: ClassVar[Family] = "other"
    merges: ClassVar[bool] = True

    config: Mapping[str, Any]
    """PEFT's settings with `peft_type`, such as `{"peft_type": "LOHA", "r": 8}`, or a `PeftConfig`, of which what differs
    from PEFT's defaults is kept. Without `target_modules` every linear layer of the blocks is adapted."""

    def __post_init__(self) -> None:
        config: Any = self.config
        if hasattr(config, "peft_type") and dataclasses.is_dataclass(config):
            config = _settings_of(config)
        if isinstance(config, Mapping):
            plain = {k: _plain(v) for k, v in config.items() if k not in _NOTES}
            if plain.get("peft_type") in _RENAMED:
                plain["peft_type"] = _RENAMED[plain["peft_type"]]
            object.__setattr__(self, "config", plain)
        Method.__post_init__(self)

    # ------------------------------------------------------------------ before anything is loaded
    def faults(self) -> list[Finding]:
        """An unknown type, a soft prompt, unknown settings, and what PEFT itself refuses."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING as KNOWN

        types, kind = sorted(k.value for k in KNOWN), str(self.config.get("peft_type", ""))
        if kind not in types:
            seen = f"`peft_type: {kind}`" if kind else "`config` of `Peft` without `peft_type`"
            return [
                error("peft-type-unknown", seen, "the installed PEFT has no such type", nearest(kind.upper(), types))
            ]
        fields = {f.name for f in dataclasses.fields(_class(kind)) if f.init} | {"peft_type"}
        why = f"`{_class(kind).__name__}` has no such setting"
        unknown = [k for k in self.config if k not in fields]
        found = [
            error("peft-setting-unknown", f"`{k}` of `config`", why, nearest(str(k), sorted(fields))) for k in unknown
        ]
        odd = [k for k, v in self.config.items() if not _is_plain(v)]
        found += [
            error(
                "peft-setting-type",
                f"`{k}` of `config` is {self.config[k]!r}",
                "a plan holds plain values",
                "write it as numbers, texts, lists or mappings",
            )
            for k in odd
        ]
        if self.config.get("megatron_config"):
            found.append(error("peft-megatron", "`megatron_config`", "it names code to import", "leave it out"))
        return found or self._own_faults()  # fmt: skip

    def _untrainable(self) -> Finding | None:
        """What can be estimated and is not trained here: PEFT's soft prompts, and starts out of the base's weights or of data."""
        start = self.config.get("init_lora_weights", True)
        if self.peft_type in _PROMPTS:
            why = "PEFT's soft prompts fail, or answer for shifted tokens, on most tasks"
            fix = f"use `method: {{kind: {_PROMPTS[self.peft_type]}}}`"
            return error("peft-prompt", f"`peft_type: {self.peft_type}`", why, fix)
        if isinstance(start, str) and start not in ("gaussian", "orthogonal"):
            why = "such a start changes the base's weights or reads data, and PEFT's file would not tell"
            fix = "use `method: {kind: lora, init_lora_weights: pissa}` (or olora), or leave it out"
            return error("peft-init", f"`init_lora_weights: {start}`", why, fix)
        return None

    def _own_faults(self) -> list[Finding]:
        try:
            _build(self.config)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            return [
                error("peft-config", f"`config` of `Peft`: {dict(self.config)}", reason(e).rstrip(". "), "correct it")
            ]
        return []

    @property
    def peft_type(self) -> str:
        """PEFT's name of the type, such as `LOHA`."""
        return str(self.config["peft_type"])

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses types that cannot save a head beside them, that want other rows, or that cannot sit on 4 or 8 bits."""
        seen, wanted = f"PEFT's {self.peft_type} for {task.name}", self.config.get("task_type")
        if (untrainable := self._untrainable()) is not None:
            return untrainable
        if wanted is not None and wanted != task.peft_task_type:
            return error("peft-task", f"`task_type: {wanted}` for {task.name}", "the task decides it", "leave it out")
        if task.has_head and "modules_to_save" not in _class(self.peft_type).__dataclass_fields__:
            return error(
                "peft-head", seen, "it cannot train and save the task's head beside it", "use `method: {kind: lora}`"
            )
        if self.peft_type in _INPUTS:
            return error("peft-inputs", seen, _INPUTS[self.peft_type], "use `method: {kind: lora}`")
        if (
            quantization is not None
            and self.peft_type not in _ON_NO_LINEAR
            and not _knows_quantised_layers(self.peft_type)
        ):
            why = "PEFT has no quantised layer of this type"
            return error(
                "peft-quantized",
                f"PEFT's {self.peft_type} on a {quantization} base",
                why,
                "use `method: {kind: lora}`, or `quantization: null`",
            )
        return None  # fmt: skip

    @classmethod
    def candidates(cls, workload: Workload) -> tuple[Method, ...]:
        """None: nobody can guess which of PEFT's types is wanted."""
        return ()

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        """VeRA, which tunekit has no method of its own for."""
        return (cls(config={"peft_type": "VERA", "r": 8}),)

    def recipe(self, workload: Workload) -> Recipe:
        """LoRA's rate for the model's size, which suits what is built like it; others have a rate in their papers."""
        return Recipe(
            learning_rate=_recipes.adapter_rate(workload),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=(_recipes.LORA_RATES, _recipes.EPOCHS),
        )

    # ------------------------------------------------------------------ on a model
    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """The biases, where they learn too."""
        return (
            frozenset(bias_names(model))
            if self.config.get("bias", "none") not in ("none", False, True)
            else frozenset()
        )

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Wraps the model as a `PeftModel`.

        Raises:
            InvalidError: `peft-target-missing`, `peft-target-head`, `peft-module-missing`, `peft-rank-layer`.
            UnsupportedError: `peft-refused`, what PEFT itself says; `peft-weightless`.
        """
        saved = [*head_modules(model, task), *(self.config.get("modules_to_save") or ())]
        chosen = self._chosen(model, saved)
        raise_all(self._model_faults(model, chosen, saved))
        chosen = None if chosen is None else outside(chosen, saved)
        weightless = any(p.device.type == "meta" for p in model.parameters())
        try:
            result = peft_format.wrap(model, self._config(model, task, chosen, saved))
        except NotImplementedError as e:
            if not weightless:
                raise
            why = f"it looks at the base's weights when it starts ({reason(e)})"
            seen = f"PEFT's {self.peft_type} on weightless tensors"
            raise UnsupportedError(error("peft-weightless", seen, why, "train it without a prediction")) from None
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError) as e:
            fix = "change `config`, or use `method: {kind: lora}`"
            raise UnsupportedError(
                error("peft-refused", f"PEFT's {self.peft_type} on a {type(model).__name__}", reason(e), fix)
            ) from None
        return result.to("meta") if weightless else result  # fmt: skip

    def _chosen(self, model: nn.Module, saved: Sequence[str]) -> tuple[str, ...] | None:
        """The modules to adapt; None where PEFT's type chooses by itself."""
        wanted = self.config.get("target_modules")
        if "target_modules" not in _class(self.peft_type).__dataclass_fields__:
            return None
        if wanted is not None and wanted != "all-linear":
            return targets(model, wanted if isinstance(wanted, str) else tuple(wanted))
        if self.peft_type in ("ADAPTION_PROMPT", "TRAINABLE_TOKENS", "SHADOW") or self.config.get("target_parameters"):
            return None
        if self.peft_type == "LN_TUNING":
            return _adapted.norms(model, saved)
        if self.peft_type == "IA3" and wanted is None:
            return (*_adapted.keys_and_values(model), *_adapted.second_feedforward(model))
        return linear_names(model)

    def _model_faults(self, model: nn.Module, chosen: Sequence[str] | None, saved: Sequence[str]) -> list[Finding]:
        wanted, more = self.config.get("target_modules"), self.config.get("modules_to_save") or ()
        own = tuple(wanted) if isinstance(wanted, list) else None if wanted == "all-linear" else wanted
        return [
            *_adapted.missing(model, self.slug, "target_modules", own, chosen or ()),
            *in_head(self.slug, own, chosen or (), saved),
            *_adapted.unknown_modules(model, self.slug, tuple(more)),
            *self._rank_faults(model, outside(chosen or (), saved)),
        ]

    def _rank_faults(self, model: nn.Module, names: Sequence[str]) -> list[Finding]:
        """Ranks that a layer cannot have; PEFT would train matrices whose product is of a smaller one."""
        field = _RANKS.get(self.peft_type, "")
        rank = self.config.get(field, 0)
        layers = [n for n in names if is_linear(model.get_submodule(n))]
        return too_high(self.slug, model, dict.fromkeys(layers, rank) if isinstance(rank, int) else {}, field)

    def _config(self, model: nn.Module, task: Task, chosen: Sequence[str] | None, saved: Sequence[str]) -> Any:
        """PEFT's configuration with the targets and the head filled in."""
        values, fields = dict(self.config), _class(self.peft_type).__dataclass_fields__
        # PEFT's class for question answering drops inputs, see `Lora`.
        values["task_type"] = None if task.name == "question-answering" else task.peft_task_type
        if saved:
            values["modules_to_save"] = list(saved)
        if chosen is not None and values.get("target_modules") in (None, "all-linear"):
            values["target_modules"] = shortened(model, chosen, saved) if self.peft_type != "IA3" else list(chosen)
            if self.peft_type == "IA3":
                values.setdefault("feedforward_modules", list(_adapted.second_feedforward(model)))
        if chosen and "fan_in_fan_out" in fields:
            values.setdefault("fan_in_fan_out", is_transposed(model, chosen))
        return _build(values)

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """PEFT's folder."""
        peft_format.save(model, folder, state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """PEFT's `from_pretrained`, refused where anything does not fit."""
        return peft_format.load(model, folder)

    def merge(self, model: nn.Module) -> nn.Module:
        """What PEFT's type does when it merges; the trained head takes its place.

        Raises:
            UnsupportedError: `method-no-merge` where this type cannot.
        """
        try:
            return _adapted.merged(model)
        except (NotImplementedError, AttributeError, ValueError) as e:
            seen = f"merge of PEFT's {self.peft_type}"
            raise UnsupportedError(error("method-no-merge", seen, reason(e), "keep it attached")) from None

    def callbacks(self) -> tuple[TrainerCallback, ...]:
        """For AdaLoRA the one that moves ranks to where they matter, which PEFT leaves to the training loop."""
        return (find("callback", "rank-allocation")(),) if self.peft_type == "ADALORA" else ()

    @classmethod
    def from_peft(cls, config: Any) -> Method | None:
        """Any configuration but a soft prompt's."""
        try:
            settings = _settings_of(config)
            if settings.pop("modules_to_save", None) and (more := own_modules(config)):
                settings["modules_to_save"] = more
            settings.pop("task_type", None)
            made = cls(config=settings)
            return made if made._untrainable() is None else None
        except TunekitError:
            return None


def _class(kind: str) -> Any:
    """PEFT's configuration class of a type."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]


def _build(values: Mapping[str, Any]) -> Any:
    return _class(str(values["peft_type"]))(**{k: v for k, v in values.items() if k != "peft_type"})


def _knows_quantised_layers(kind: str) -> bool:
    """By layers that ask for PEFT's quantisation backend, or by a file of quantised layers of the type's own."""
    from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftType

    package = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(kind)].__module__.rpartition(".")[0]
    if importlib.util.find_spec(f"{package}.bnb") is not None:
        return True
    has_layers = importlib.util.find_spec(f"{package}.layer") is not None
    return has_layers and hasattr(importlib.import_module(f"{package}.layer"), "resolve_quantization_backend")


def _settings_of(config: Any) -> dict[str, Any]:
    """What a live configuration says that differs from its class's defaults."""
    found = {"peft_type": config.peft_type}
    for f in dataclasses.fields(config):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if f.name != "peft_type" and getattr(config, f.name) != default:
            found[f.name] = getattr(config, f.name)
    return found


def _plain(value: Any) -> Any:
    """Sets, tuples, enumerations and nested configurations as what YAML knows."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(v) for v in value), key=str)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return (
        all(map(_is_plain, value))
        if isinstance(value, list)
        else isinstance(value, bool | int | float | str | type(None))
    )
