"""Prefix-tuning: learnt keys and values in front of every attention, for models that write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit import peft_format
from tunekit.contracts import Family, Method, Objective, Reads, Recipe
from tunekit.finding import Finding, error
from tunekit.methods import _deep_prompts as shared
from tunekit.methods import _head_rate, _prefix_peft, _prompt_text, _recipes
from tunekit.structure import head_parameters
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixTuning(Method):
    """Puts learnt keys and values in front of those of every attention module; the base stays as it is.

    They are joined through transformers' attention interface, so activation checkpointing, generation with any cache
    and encoders work. While it learns, a small network makes the prefixes (`prefix_projection`); what is saved is what
    that network made. In an encoder-decoder both stacks and the look from one to the other get prefixes.

    A module that is run at several depths (ALBERT) has one prefix for all of them.

    Example:
        >>> PrefixTuning(num_virtual_tokens=0)
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [prefix-tuning-tokens] `num_virtual_tokens` of `PrefixTuning` is 0: ...

    References:
        Li and Liang, Prefix-Tuning: Optimizing Continuous Prompts for Generation, 2021.
    """

    slug: ClassVar[str] = "prefix-tuning"
    title: ClassVar[str] = "Prefix-tuning"
    reference: ClassVar[str] = "Li and Liang, Prefix-Tuning: Optimizing Continuous Prompts for Generation, 2021"
    family: ClassVar[Family] = "prompts"
    own_format: ClassVar[bool] = True

    num_virtual_tokens: int = 20
    """Length of the prefix: 10 for table-to-text, 30 to 50 for decoders of 1B and more, 200 for summaries with BART."""
    prefix_projection: bool = True
    """Whether a two-layer network makes the prefixes while it learns; learning them directly is unstable (Li and Liang)."""
    encoder_hidden_size: int | None = None
    """Width of that network's hidden layer, 512 for table-to-text and 800 for summaries; None: the keys' width."""
    positions: shared.Positions | None = None
    """Where the first real token stands: `shifted` behind the prefix, as PEFT has it, or `natural`, where it stood in
    pretraining; None: shifted where PEFT can read what is saved, otherwise natural."""
    init: _prompt_text.PrefixInit = "random"
    """`activations`: start from the keys and values of real words; needs `prefix_projection: false`."""
    init_text: str | None = None
    """For `activations`: which words, such as a description of the task; None: words drawn from the vocabulary."""
    tokenizer_name_or_path: str | None = None
    """The tokenizer of `init_text`; None: the one in the model's folder."""
    sides: shared.Sides = "both"
    """For an encoder-decoder: which stack gets prefixes; the decoder's include those in front of what it reads."""
    head_lr_ratio: float | None = None
    """Learning rate of the task's head over that of the prefixes; None: 0.1 where prefixes are learnt themselves, 10 where a network makes them."""

    def faults(self) -> list[Finding]:
        """Every value out of its range."""
        return [*_head_rate.faults(self), *shared.value_faults(self), *self._init_faults()]

    def _init_faults(self) -> list[Finding]:
        found = []
        if self.init == "activations" and self.prefix_projection:
            why = "a network cannot be set so that it makes given keys and values"
            fix = "set `prefix_projection: false` with it"
            found.append(error("prefix-tuning-init", "`init: activations` with `prefix_projection`", why, fix))
        for name in ("init_text", "tokenizer_name_or_path"):
            if getattr(self, name) is not None and self.init != "activations":
                fix = "set `init: activations` and `prefix_projection: false`, or leave it out"
                found.append(error("prefix-tuning-init", f"`{name}` with `init: {self.init}`", "nothing reads it", fix))
        return found

    @property
    def reads(self) -> Reads:
        """Real keys and values come out of the base's weights."""
        return "weights" if self.init == "activations" else "nothing"

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses models whose attention others cannot reach, and sides that a model does not have."""
        if self.sides != "both" and model.side != "seq2seq":
            return error(
                "prefix-side", f"`sides: {self.sides}` on {model.name}", "it has one stack only", "set `sides: both`"
            )
        return shared.refusal(self, model)

    @classmethod
    def candidates(cls, workload: Workload) -> tuple[Method, ...]:
        """The defaults; for summaries and other long texts to read a longer prefix."""
        if workload.task.name == "seq2seq" and workload.data.mean_tokens > 200:
            return (cls(num_virtual_tokens=100),)
        return (cls(),)

    def recipe(self, workload: Workload) -> Recipe:
        """With the network the paper's rate, higher for small models; without it a rate far above that of weights."""
        return Recipe(
            learning_rate=(_head_rate.network_rate if self.prefix_projection else _head_rate.direct_rate)(workload),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=(
                "Li and Liang, 2021: 5e-5 with the projection, for 5 to 30 epochs",
                "PEFT method comparison benchmark: 5e-3 for prefixes that are learnt directly",
                _head_rate.NETWORK_RATES if self.prefix_projection else _head_rate.RATES,
                _recipes.EPOCHS,
            ),
        )

    # ------------------------------------------------------------------ on a model
    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """The head."""
        return head_parameters(model, task)

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Puts the prefixes in front; the model itself is returned.

        Raises:
            UnsupportedError: `own-attention`, `attention-kernel`, `prefix-side`, `prefix-positions`, `prompt-too-long`.
            MissingError: `init-text-tokenizer`.
        """
        if self.init != "activations" or any(p.device.type == "meta" for p in model.parameters()):
            return shared.apply(self, model, task, self.sides)
        tokens = _prompt_text.tokens(model, self.num_virtual_tokens, self.init_text, self.tokenizer_name_or_path)
        return shared.apply(self, model, task, self.sides, tokens)

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The usual groups; the head learns `head_lr_ratio` times as fast as the prefixes."""
        return _head_rate.groups(self, model, learning_rate, weight_decay, direct=not self.prefix_projection)

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """The keys and values themselves, in PEFT's files where PEFT gives the same logits."""
        shared.save(self, model, folder, state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Puts saved prefixes and the head on a fresh base; PEFT's own where its logits are ours, otherwise by PEFT."""
        if _prefix_peft.belongs_to_peft(folder, model, task):
            return peft_format.load(model, folder)
        given = dataclasses.replace(self, init="random", init_text=None, tokenizer_name_or_path=None)
        return shared.load_into(self, given.apply(model, task), folder)

    @classmethod
    def from_peft(cls, config: Any) -> Method | None:
        """A `PrefixTuningConfig` of a model with one stack."""
        settings = _prefix_peft.settings(config)
        return None if settings is None else cls(**settings)
