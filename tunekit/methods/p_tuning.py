"""P-tuning: vectors in front of the embedded input that a small network makes while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit import peft_format
from tunekit.contracts import Family, Method, Objective, Reads, Recipe
from tunekit.finding import Finding, error
from tunekit.methods import _head_rate, _recipes, _soft_peft
from tunekit.methods import _soft_prompts as shared
from tunekit.structure import base_model, head_parameters
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunekit.prompt_vectors import AnyVectors


@dataclass(frozen=True, kw_only=True, slots=True)
class PTuning(Method):
    """Prompt tuning whose vectors depend on each other while they learn: a perceptron or an LSTM makes them.

    What is saved is what the network made: `encoder` of a loaded prompt is None.

    Example:
        >>> PTuning(encoder_num_layers=0)
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [p-tuning-encoder] `encoder_num_layers` of `PTuning` is 0: ...

    References:
        Liu et al., GPT Understands, Too, 2021.
    """

    slug: ClassVar[str] = "p-tuning"
    title: ClassVar[str] = "P-tuning"
    reference: ClassVar[str] = "Liu et al., GPT Understands, Too, 2021"
    family: ClassVar[Family] = "prompts"
    own_format: ClassVar[bool] = True
    packs: ClassVar[bool] = False

    num_virtual_tokens: int = 20
    """Length of the prompt; longer ones gained nothing in PEFT's method comparison."""
    encoder: Literal["mlp", "lstm"] | None = "mlp"
    """The network: `mlp` for each vector by itself, `lstm` (both directions) over all of them, as in the paper's first
    version; None: the vectors themselves are learnt."""
    encoder_hidden_size: int | None = None
    """Width of the network's hidden layers; None: the model's."""
    encoder_num_layers: int = 2
    """Hidden layers of the perceptron, or layers of the LSTM."""
    encoder_dropout: float = 0.0
    """Share of the hidden values that are dropped while learning."""
    positions: shared.Positions | None = None
    """Where the first real token stands: `shifted` behind the prompt, as PEFT has it, or `natural`, where it stood in
    pretraining, so that rows of the whole context still fit; None: shifted where PEFT can read what is saved, otherwise
    natural. It matters for learnt positions only."""
    head_lr_ratio: float | None = None
    """Learning rate of the task's head over that of the prompt; None: 0.1 where vectors are learnt themselves, 10 where a network makes them."""

    def faults(self) -> list[Finding]:
        """Every value out of its range."""
        return [*_head_rate.faults(self), *shared.token_faults(self), *self._encoder_faults()]

    def _encoder_faults(self) -> list[Finding]:
        hidden, dropout = self.encoder_hidden_size, self.encoder_dropout
        wrong = (
            ("encoder_hidden_size", hidden is not None and hidden < 1, "a layer has at least one unit", "leave it out"),
            ("encoder_num_layers", self.encoder_num_layers < 1, "a network has at least one layer", "set 2"),
            ("encoder_dropout", not 0.0 <= dropout < 1.0, "it is a share of the values", "set 0.0 to 0.5"),
        )
        found = [
            error("p-tuning-encoder", f"`{name}` of `PTuning` is {getattr(self, name)}", why, fix)
            for name, is_wrong, why, fix in wrong
            if is_wrong
        ]
        if self.encoder is None and (hidden is not None or dropout):
            fix = "set `encoder: mlp`, or leave them out"
            found.append(
                error("p-tuning-encoder", "settings of the network with `encoder: null`", "there is no network", fix)
            )
        return found

    @property
    def reads(self) -> Reads:
        """Vectors that no network makes start with the spread of the base's own embeddings."""
        return "weights" if self.encoder is None else "nothing"

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
    def examples(cls) -> tuple[Method, ...]:
        """Both networks."""
        return (cls(), cls(encoder="lstm", encoder_hidden_size=8))

    def recipe(self, workload: Workload) -> Recipe:
        """The benchmark's rate where only the network learns, a higher one beside the head of a small model."""
        return Recipe(
            learning_rate=shared.rate(workload, direct=self.encoder is None),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=(
                "PEFT method comparison benchmark: 1e-4, 20 tokens and a perceptron for a 3B decoder",
                "Liu et al., P-Tuning v2, 2022: 5e-3 to 1e-2 for prompts without a network",
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
        """
        from tunekit import soft_prompt

        hidden = self.encoder_hidden_size or base_model(model).config.get_text_config().hidden_size
        shared.apply(self, model, task, partial(self._vectors, hidden))
        if self.encoder is None and all(p.device.type != "meta" for p in model.parameters()):
            soft_prompt.set_random(model)
        return model

    def _vectors(self, hidden: int, width: int, device: torch.device) -> AnyVectors:
        from tunekit.prompt_vectors import EncodedVectors, Vectors

        if self.encoder is None:
            return Vectors(self.num_virtual_tokens, width, device)
        size, depth = self.num_virtual_tokens, self.encoder_num_layers
        return EncodedVectors(size, width, device, self.encoder, hidden, depth, self.encoder_dropout)

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The usual groups; the head learns `head_lr_ratio` times as fast as the prompt."""
        return _head_rate.groups(self, model, learning_rate, weight_decay, direct=self.encoder is None)

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """The vectors that the network makes, in PEFT's files where PEFT gives the same logits."""
        shared.save(self, model, folder, state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Puts a saved prompt and the head on a fresh base; PEFT's own where its logits are ours, otherwise by PEFT."""
        if _soft_peft.belongs_to_peft(folder, model, task):
            return peft_format.load(model, folder)
        return shared.load_into(self, self.apply(model, task), folder)

    @classmethod
    def from_peft(cls, config: Any) -> Method | None:
        """A `PromptEncoderConfig`, whose folder holds what the network made."""
        length = _soft_peft.num_virtual_tokens(config, cls.slug)
        return None if length is None else cls(num_virtual_tokens=length, encoder=None, positions="shifted")
