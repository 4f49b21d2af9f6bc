"""Supervised: the task's own loss on its labels, as the model computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit.contracts import Objective

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervised(Objective):
    """The model's own loss on the labels: cross-entropy, or mean squared error for regression.

    Example:
        >>> Supervised().to_dict()
        {'kind': 'supervised', 'loss_kernel': 'plain'}
    """

    loss_kernel: Literal["plain", "chunked"] = "plain"
    """`chunked`: the same loss and gradient of a causal-lm or seq2seq model with its output layer applied to supervised
    positions only, and never to all of them at once. Faster where prompts are not learnt, and where a vocabulary of tens of
    thousands of words fills the memory (Hsu et al., Liger Kernel, 2024; Wijmans et al., Cut Your Losses, 2024). The outputs
    then hold no logits; an evaluation makes them all."""

    slug: ClassVar[str] = "supervised"
    title: ClassVar[str] = "Supervised"
    reference: ClassVar[str] = "the loss that transformers' task heads compute"
    plain_trainer: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    def loss(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> tuple[torch.Tensor, Any]:
        """The loss and the model's outputs, see `Objective.loss`.

        The model is asked for its mean, which is then weighed by this batch's share of the items. `num_items_in_batch`
        is not handed to the model: its forward takes it silently, and of the heads only causal language models honour
        it; the others (BERT's heads, T5, BART) return the mean, so that under accumulation over N batches a plain
        Trainer trains on N times the loss (seen with transformers 5.17 to 5.23).
        """
        if self.loss_kernel == "chunked" and model.training and "labels" in inputs:
            return _chunked(model, inputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = outputs["loss"]
        if num_items_in_batch is not None and "labels" in inputs:
            here = num_supervised(model, inputs["labels"])
            # The mean over nothing is no number; a rank may have such a batch, at the end of an epoch.
            loss = loss.where(here > 0, 0.0) * (here / num_items_in_batch)
        return loss, outputs


def _chunked(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None
) -> tuple[torch.Tensor, Any]:
    from tunekit.objectives._chunked import chunked_cross_entropy, with_router_loss

    total, here, outputs = chunked_cross_entropy(model, inputs)
    # A batch without a target adds nothing; one that is all there is has no mean, as in the plain loss.
    mean = with_router_loss(model, outputs, total / here.clamp(min=1))
    if num_items_in_batch is None:
        return mean, outputs
    return mean * (here / num_items_in_batch), outputs


def num_supervised(model: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """How many labels the model's mean is taken over.

    A decoder's loss shifts the labels by one, so the first position of a row is no target.
    """
    inner = model
    while hasattr(inner, "module") or hasattr(inner, "get_base_model"):
        inner = inner.module if hasattr(inner, "module") else inner.get_base_model()
    return (labels[..., 1:] if _shifts(inner) else labels).ne(-100).sum()


def _shifts(model: Any) -> bool:
    """Whether the loss of a transformers model compares each position with the label after it."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    kind = getattr(model, "loss_type", "")
    if kind is None:
        # transformers reads the loss off the class's name; what ends in `LMHeadModel` (GPT-2) says none, and gets this one.
        return getattr(model, "get_output_embeddings", lambda: None)() is not None
    return LOSS_MAPPING.get(kind) is ForCausalLMLoss
