"""LoRA: a low-rank change beside each linear layer, by PEFT."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit import peft_format
from tunekit.contracts import Family, Method, Objective, Reads, Recipe
from tunekit.errors import raise_all
from tunekit.fields import hints
from tunekit.finding import Finding, error
from tunekit.methods import _lora_targets as find_targets
from tunekit.methods import _recipes
from tunekit.structure import bias_names, decayed_names, head_modules
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

_INIT = re.compile(r"gaussian|orthogonal|olora|pissa(_niter_[1-9]\d*)?")
_FROM_WEIGHTS = re.compile(r"olora|pissa.*")
_FROM_DATA = ("eva", "corda", "lora_ga")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora(Method):
    """Learns a low-rank change B A of each linear layer's weight; the base stays as it is.

    PEFT does the work. What is decided here: which layers by the model's structure (head, embeddings and routers of
    experts left out), which head to train along, and that an adapter saved anywhere reloads with plain PEFT.

    Fused experts (one three-dimensional weight for all experts, as Mixtral has) are adapted only on demand, by
    `target_parameters`: PEFT then materialises their change in every step.

    Example:
        >>> Lora(r=0, lora_dropout=1.0)
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: 2 problems:
          [lora-r] `r` of `Lora` is 0: a rank is at least 1. Set `r` to 8, 16 or 32.
          [lora-dropout] `lora_dropout` of `Lora` is 1.0: a probability of dropping is at least 0 and below 1. ...

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021. Kalajdzievski, rsLoRA, 2023. Liu et al.,
        DoRA, 2024. Meng et al., PiSSA, 2024. Büyükakyüz, OLoRA, 2024. Hayou et al., LoRA+, 2024.
    """

    slug: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    reference: ClassVar[str] = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021"
    family: ClassVar[Family] = "lora"
    merges: ClassVar[bool] = True

    r: int = 16
    """Rank. 8 to 16 for classification, 16 to 32 for up to 10,000 instructions, 64 to 256 for more (with `use_rslora`)."""
    lora_alpha: int | float = 32
    """The change is scaled by `lora_alpha / r` (by `lora_alpha / sqrt(r)` with `use_rslora`)."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input; 0.05 to 0.1 helps little data."""
    target_modules: str | tuple[str, ...] | None = None
    """Which layers: None or `all-linear` for every linear layer of the blocks, `attention` for theirs only, a regular
    expression that matches whole names, or the ends of names such as `("q_proj", "v_proj")`."""
    target_parameters: tuple[str, ...] = ()
    """Ends of the names of fused expert weights to adapt too, such as `("experts.gate_up_proj", "experts.down_proj")`."""
    use_rslora: bool = False
    """Scale by the square root of the rank: keeps updates alive at ranks of 64 and more."""
    use_dora: bool = False
    """Learn the weight's magnitude and direction apart: about a quarter slower, at times better at low ranks."""
    init_lora_weights: bool | str = True
    """True (A random, B zero), `gaussian`, `orthogonal`, `pissa`, `pissa_niter_N` (principal components of the weight;
    use `lora_alpha = r`), `olora`; False: both random, for debugging."""
    modules_to_save: tuple[str, ...] = ()
    """Further modules to train whole, by the ends of their names; the task's head always is."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Another rank for layers whose name ends so."""
    alpha_pattern: Mapping[str, int | float] = field(default_factory=dict)
    """Another `lora_alpha` for layers whose name ends so."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Whether biases learn too: the base's own then change."""
    loraplus_lr_ratio: float | None = None
    """LoRA+: the rate of B over that of A, 16 in the paper; None: the same."""

    def faults(self) -> list[Finding]:
        """Every value out of its range."""
        found = []
        if self.r < 1:
            found.append(
                error("lora-r", f"`r` of `Lora` is {self.r}", "a rank is at least 1", "set `r` to 8, 16 or 32")
            )
        if not 0 <= self.lora_dropout < 1:
            found.append(
                error(
                    "lora-dropout",
                    f"`lora_dropout` of `Lora` is {self.lora_dropout}",
                    "a probability of dropping is at least 0 and below 1",
                    "set 0.0 to 0.1",
                )
            )
        if self.lora_alpha <= 0:
            found.append(
                error(
                    "lora-alpha",
                    f"`lora_alpha` of `Lora` is {self.lora_alpha}",
                    "a scale is above 0",
                    "set it to `r` or twice that",
                )
            )
        if self.loraplus_lr_ratio is not None and self.loraplus_lr_ratio <= 0:
            found.append(
                error(
                    "lora-plus-ratio",
                    f"`loraplus_lr_ratio` of `Lora` is {self.loraplus_lr_ratio}",
                    "a rate is above 0",
                    "set 16",
                )
            )
        bad = [
            f"{k}: {v}"
            for k, v in (*self.rank_pattern.items(), *self.alpha_pattern.items())
            if not isinstance(v, int | float) or v <= 0
        ]
        bad += [f"{k}: {v}" for k, v in self.rank_pattern.items() if isinstance(v, float)]
        if bad:
            found.append(
                error(
                    "lora-pattern",
                    f"`rank_pattern` or `alpha_pattern` with {', '.join(bad)}",
                    "ranks are whole and at least 1, alphas above 0",
                    "correct them",
                )
            )
        return [*found, *self._init_faults(), *self._pair_faults()]

    def _init_faults(self) -> list[Finding]:
        init = self.init_lora_weights
        if isinstance(init, bool) or (_INIT.fullmatch(init) and init != "orthogonal"):
            return []
        if init == "orthogonal":
            odd = [r for r in (self.r, *self.rank_pattern.values()) if isinstance(r, int) and r % 2]
            return (
                [
                    error(
                        "lora-orthogonal-rank",
                        f"rank {odd[0]} with `init_lora_weights: orthogonal`",
                        "it needs an even rank",
                        "add 1 to it",
                    )
                ]
                if odd
                else []
            )
        why = "it reads data before training, which is not built in" if init in _FROM_DATA else "no such initialisation"
        return [
            error(
                "lora-init",
                f"`init_lora_weights` of `Lora` is {init!r}",
                why,
                "use true, gaussian, orthogonal, pissa, pissa_niter_16 or olora",
            )
        ]

    def _pair_faults(self) -> list[Finding]:
        if not self.target_parameters or not (self.lora_dropout or self.use_dora or self._changes_base):
            return []
        return [
            error(
                "lora-experts", "`target_parameters` with dropout, DoRA, PiSSA or OLoRA", "PEFT adapts fused experts by plain LoRA only",
                "set `lora_dropout: 0`, `use_dora: false` and `init_lora_weights: true`, or leave the experts out",
            )
        ]  # fmt: skip

    @property
    def _changes_base(self) -> bool:
        return isinstance(self.init_lora_weights, str) and _FROM_WEIGHTS.fullmatch(self.init_lora_weights) is not None

    @property
    def reads(self) -> Reads:
        """PiSSA and OLoRA start from the base's weights."""
        return "weights" if self._changes_base else "nothing"

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Works everywhere but for PiSSA and OLoRA on a quantised base."""
        if quantization is not None and self._changes_base:
            return error(
                "lora-init-quantized", f"`init_lora_weights: {self.init_lora_weights}` on a {quantization} base",
                "it takes its first value out of the weights, which would have to be quantised again",
                "set `init_lora_weights: true`, or `quantization: null`",
            )  # fmt: skip
        return None

    @classmethod
    def candidates(cls, workload: Workload) -> tuple[Method, ...]:
        """Every linear layer, at the rank that the information in the rows asks for: 8 to 32, alpha twice that.

        Beside it, for many rows of text to write, the rank that the rows ask for from 64 on, with rsLoRA.
        """
        rank = _recipes.rank(workload)
        plain = min(rank, 32)
        made = cls(r=plain, lora_alpha=2 * plain)
        if workload.task.has_head or workload.data.num_examples < 20_000:
            return (made,)
        high = min(max(rank, 64), _recipes.most_rank(workload.model))
        if high <= plain:
            return (made,)
        return (made, cls(r=high, lora_alpha=high, use_rslora=True))

    def recipe(self, workload: Workload) -> Recipe:
        """The rate falls with the model's size; batches of 16, which LoRA prefers to large ones."""
        rate = _recipes.adapter_rate(workload)
        return Recipe(
            learning_rate=rate / 5 if self._changes_base and str(self.init_lora_weights).startswith("pissa") else rate,
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=(_recipes.LORA_RATES, _recipes.SFT_RATES, _recipes.EPOCHS, _recipes.RANKS),
        )

    # ------------------------------------------------------------------ on a model
    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """The adapted weights under PiSSA and OLoRA; the biases that learn."""
        changed = set(bias_names(model)) if self.bias != "none" else set()
        if self._changes_base:
            changed |= {f"{name}.weight" for name in find_targets.targets(model, self.target_modules)}
        return frozenset(changed & {name for name, _ in model.named_parameters()})

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Wraps the model as a `PeftModel`.

        Raises:
            InvalidError: `lora-target-missing`, `lora-target-head`, `lora-target-kind`, `lora-rank-layer`, ...
        """
        import torch

        heads = head_modules(model, task)
        targets = find_targets.targets(model, self.target_modules)
        raise_all(find_targets.faults(model, self, heads, targets))
        weightless = any(p.device.type == "meta" for p in model.parameters())
        targets = find_targets.outside(targets, [*heads, *self.modules_to_save])
        config = self._config(model, task, heads, targets, weightless)
        if not self._changes_base or weightless:
            return peft_format.wrap(model, config)
        # A randomised decomposition must come out the same on every rank and when a run resumes.
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            result = peft_format.wrap(model, config)
        peft_format.save_as_plain_lora(result)
        return result

    def _config(
        self, model: nn.Module, task: Task, heads: tuple[str, ...], targets: tuple[str, ...], weightless: bool
    ) -> Any:
        """PEFT's configuration of this, with the targets as names that plain PEFT finds again."""
        from peft import LoraConfig

        saved = [*heads, *self.modules_to_save]
        # PEFT's class for question answering passes neither token types nor positions on to the model (PEFT 0.21,
        # `PeftModelForQuestionAnswering.forward`); its general class passes everything.
        task_type = None if task.name == "question-answering" else task.peft_task_type
        values = {
            name: getattr(self, name)
            for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "bias")
        }
        if weightless and not isinstance(self.init_lora_weights, bool):
            values["init_lora_weights"] = True
        with warnings.catch_warnings():
            # Of rsLoRA with patterns PEFT says that it could not convert it; `save_as_plain_lora` does.
            warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern")
            return LoraConfig(
                task_type=task_type,
                target_modules=find_targets.shortened(model, targets, saved),
                target_parameters=find_targets.parameters(model, self.target_parameters) or None,
                modules_to_save=saved or None,
                rank_pattern=dict(self.rank_pattern),
                alpha_pattern=dict(self.alpha_pattern),
                fan_in_fan_out=find_targets.is_transposed(model, targets),
                **values,
            )

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The usual groups; with `loraplus_lr_ratio` the B matrices learn that many times faster."""
        ratio, decayed = self.loraplus_lr_ratio or 1.0, decayed_names(model)
        split: dict[tuple[float, float], list[Any]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                fast = ".lora_B." in name or ".lora_embedding_B." in name
                key = (learning_rate * ratio if fast else learning_rate, weight_decay if name in decayed else 0.0)
                split.setdefault(key, []).append(p)
        return [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in split.items()]

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """PEFT's folder; PiSSA and OLoRA as a plain LoRA of twice the rank, so that nothing need be initialised again."""
        peft_format.save(model, folder, state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """PEFT's `from_pretrained`, refused where anything does not fit."""
        return peft_format.load(model, folder)

    def merge(self, model: nn.Module) -> nn.Module:
        """Adds the change to the base's weights; the trained head takes its place."""
        return model.merge_and_unload()

    @classmethod
    def from_peft(cls, config: Any) -> Method | None:
        """A `LoraConfig` in our terms, where every setting that matters has one."""
        if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA" or config.target_modules is None:
            return None
        values = {name: getattr(config, name) for name in hints(cls) if getattr(config, name, None) is not None}
        values["modules_to_save"] = find_targets.own_modules(config)
        for name in ("target_modules", "target_parameters", "modules_to_save"):
            if isinstance(values.get(name), list | set | tuple):
                values[name] = tuple(sorted(values[name]))
        if not isinstance(values["init_lora_weights"], bool) and not _INIT.fullmatch(str(values["init_lora_weights"])):
            return None
        return cls(**values)
