"""Prompt tuning: learnt vectors in front of the embedded input, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit import peft_format
from tunekit.contracts import Family, Method, Objective, Reads, Recipe
from tunekit.finding import Finding, error
from tunekit.methods import _head_rate, _prompt_text, _recipes, _soft_peft
from tunekit.methods import _soft_prompts as shared
from tunekit.structure import head_parameters
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

PromptInit = Literal["vocabulary", "text", "random"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTuning(Method):
    """Puts learnt vectors in front of the embedded tokens of the input; the base stays as it is.

    The head, the labels and the returned logits see the real tokens only, so every task works, on every architecture.
    In an encoder the vectors come behind the first token, which is what poolers and heads read; in an encoder-decoder
    they go to the encoder.

    Example:
        >>> PromptTuning(init_text="good or bad?")
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [prompt-tuning-init] `init_text` with `init: vocabulary`: nothing reads it. ...

    References:
        Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, 2021.
    """

    slug: ClassVar[str] = "prompt-tuning"
    title: ClassVar[str] = "Prompt tuning"
    reference: ClassVar[str] = "Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, 2021"
    family: ClassVar[Family] = "prompts"
    own_format: ClassVar[bool] = True
    packs: ClassVar[bool] = False

    num_virtual_tokens: int = 20
    """Length of the prompt: 20 is enough for models above 10B, 100 for smaller ones (Lester et al.)."""
    init: PromptInit = "vocabulary"
    """Where the vectors start: at the embeddings of words drawn from the vocabulary, at those of `init_text`, or at
    random, which does worse (PEFT's method comparison: 23.4 against 34.3 for a 3B decoder)."""
    init_text: str | None = None
    """For `text`: which words, such as a description of the task or the names of its labels."""
    tokenizer_name_or_path: str | None = None
    """The tokenizer of `init_text`; None: the one in the model's folder."""
    positions: shared.Positions | None = None
    """Where the first real token stands: `shifted` behind the prompt, as PEFT has it, or `natural`, where it stood in
    pretraining, so that rows of the whole context still fit; None: shifted where PEFT can read what is saved, otherwise
    natural. It matters for learnt positions only."""
    head_lr_ratio: float | None = None
    """Learning rate of the task's head over that of the prompt; None: 0.1, since the head is made of weights."""

    def faults(self) -> list[Finding]:
        """Every value out of its range."""
        return [*_head_rate.faults(self), *shared.token_faults(self), *self._init_faults()]

    def _init_faults(self) -> list[Finding]:
        found = []
        if self.init == "text" and not self.init_text:
            fix = "set `init_text` with it, or `init: vocabulary`"
            found.append(error("prompt-tuning-init", "`init: text` without `init_text`", "there is no text", fix))
        for name in ("init_text", "tokenizer_name_or_path"):
            if getattr(self, name) is not None and self.init != "text":
                fix = "set `init: text`, or leave it out"
                found.append(error("prompt-tuning-init", f"`{name}` with `init: {self.init}`", "nothing reads it", fix))
        return found

    @property
    def reads(self) -> Reads:
        """Every start is measured on the base's own embeddings."""
        return "weights"

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses a prompt that leaves no room for the row."""
        return shared.refusal(self, model)

    @classmethod
    def candidates(cls, workload: Workload) -> tuple[Method, ...]:
        """20 tokens for huge models and simple classification, 100 elsewhere if the context has room for them."""
        model = workload.model
        enough = model.num_parameters >= 10**10 or workload.task.name in ("sequence-classification", "multiple-choice")
        crowded = model.context_length is not None and model.context_length < 500
        return (cls(),) if enough or crowded else (cls(num_virtual_tokens=100),)

    def recipe(self, workload: Workload) -> Recipe:
        """Rates far above those of weights: there are few vectors, and they start far from where they end."""
        return Recipe(
            learning_rate=shared.rate(workload, direct=True),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=(
                "Lester et al., 2021: 0.3 for T5",
                "PEFT method comparison benchmark: 1e-3 for a 3B decoder",
                "Liu et al., P-Tuning v2, 2022: 5e-3 to 1e-2 for prompts beside a head",
                _head_rate.RATES,
                _recipes.EPOCHS,
            ),
        )

    # ------------------------------------------------------------------ on a model
    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """The head."""
        return head_parameters(model, task)

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Puts the prompt in; the model itself is returned.

        Raises:
            UnsupportedError: `prompt-no-base`, `prompt-positions`, `prompt-too-long`.
            MissingError: `init-text-tokenizer`.
        """
        from tunekit import soft_prompt
        from tunekit.prompt_vectors import Vectors

        shared.apply(self, model, task, lambda width, device: Vectors(self.num_virtual_tokens, width, device))
        if any(p.device.type == "meta" for p in model.parameters()):
            return model
        if self.init == "random":
            soft_prompt.set_random(model)
        else:
            text, tokenizer = self.init_text, self.tokenizer_name_or_path
            soft_prompt.set_from_tokens(model, _prompt_text.tokens(model, self.num_virtual_tokens, text, tokenizer))
        return model

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The usual groups; the head learns `head_lr_ratio` times as fast as the prompt."""
        return _head_rate.groups(self, model, learning_rate, weight_decay, direct=True)

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """The vectors, in PEFT's files where PEFT gives the same logits."""
        shared.save(self, model, folder, state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Puts a saved prompt and the head on a fresh base; PEFT's own where its logits are ours, otherwise by PEFT."""
        if _soft_peft.belongs_to_peft(folder, model, task):
            return peft_format.load(model, folder)
        given = dataclasses.replace(self, init="random", init_text=None, tokenizer_name_or_path=None)
        return shared.load_into(self, given.apply(model, task), folder)

    @classmethod
    def from_peft(cls, config: Any) -> Method | None:
        """A `PromptTuningConfig`."""
        length = _soft_peft.num_virtual_tokens(config, cls.slug)
        return None if length is None else cls(num_virtual_tokens=length, positions="shifted")
