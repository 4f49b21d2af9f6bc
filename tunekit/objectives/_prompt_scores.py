"""What a language model says in the blanks: log-probabilities of label words, and of classes by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tunekit.objectives._live import unwrapped
from tunekit.objectives._vocabulary import Answers, answers

if TYPE_CHECKING:
    import torch
    from torch import nn


class Said(NamedTuple):
    """The model's last states of a batch's sequences, and what is asked of them."""

    answers: Answers
    states: torch.Tensor
    """(sequences, tokens, width)."""
    shape: tuple[int, int]
    """Rows, and sequences a row."""


def run(model: nn.Module, inputs: Mapping[str, torch.Tensor], beside: torch.Tensor | None = None) -> Said:
    """One pass over every sequence of a batch.

    Args:
        model: The language model.
        inputs: The batch.
        beside: Further sequences of the same shape as `input_ids`, which are read in the same pass.
    """
    import torch

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    rows, length = ids.shape[0], ids.shape[-1]
    asked = {"input_ids": ids.reshape(-1, length), "attention_mask": mask.reshape(-1, length)}
    sequences = asked["input_ids"].shape[0]
    if beside is not None:
        asked["input_ids"] = torch.cat([asked["input_ids"], beside.reshape(-1, length)])
        asked["attention_mask"] = asked["attention_mask"].repeat(2, 1)
    if "answers" in inputs:
        written = inputs["answers"].reshape(-1, inputs["answers"].shape[-1])
        asked["decoder_input_ids"] = unwrapped(model).prepare_decoder_input_ids_from_labels(labels=written)
        length = written.shape[-1]
    said = answers(model, asked, whole=_is_partitioned(model))
    # Soft prompts that are PEFT's stand before the text.
    return Said(said, said.states[:, -length:], (rows, sequences // rows))


def _is_partitioned(model: nn.Module) -> bool:
    """Whether ZeRO-3 holds the weights in parts: they are whole only while their own module runs inside the model."""
    return any(hasattr(p, "ds_id") for p in model.parameters())


def logits_at(said: Said, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits at some positions, (sequences, positions, vocabulary), in fp32."""
    where = positions.clamp(min=0)[..., None].expand(-1, -1, states.shape[-1])
    return said.answers.logits(states.gather(1, where)).float()


def word_scores(said: Said, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Log-probability of each label word, the mean over its tokens, (rows, templates, words)."""
    import torch

    words, positions = inputs["words"], inputs["positions"]
    (rows, each), (templates, tokens) = said.shape, (words.shape[1], words.shape[-1])
    logits = logits_at(said, said.states[: rows * each], positions.reshape(rows * each, -1))
    shaped = logits.view(rows, templates, each // templates, tokens, -1)
    row, template, token = (torch.arange(n, device=words.device) for n in (rows, templates, tokens))
    where = (row[:, None, None, None], template[:, None, None], inputs["said_in"][:, None, :, None], token)
    wanted = (*where, words.clamp(min=0))
    scores = shaped[wanted] - shaped.logsumexp(-1)[where]
    known = (words >= 0).to(logits.dtype)
    return (scores * known).sum(-1) / known.sum(-1).clamp(min=1)


def class_scores(words: torch.Tensor, inputs: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
    """Log-probability of each class among the classes, less what content-free rows say; (rows, templates, classes)."""
    import torch

    classes = torch.arange(count, device=words.device)
    belongs = (inputs["classes"][..., None] == classes).to(words.dtype)
    scores = torch.einsum("rtw,rwc->rtc", words, belongs) / belongs.sum(1).clamp(min=1)[:, None]
    scores = scores.log_softmax(-1)
    return (scores - inputs["prior"]).log_softmax(-1) if "prior" in inputs else scores


def label_losses(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every row, the mean over its templates; labels are classes or a share of each class."""
    if labels.is_floating_point():
        return -(labels[:, None] * scores).sum(-1).mean(1)
    kept = labels.ne(-100)
    chosen = labels.clamp(min=0)[:, None, None].expand(-1, scores.shape[1], 1)
    return -scores.gather(-1, chosen)[..., 0].mean(1) * kept


def hidden_losses(said: Said, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Masked-LM loss of every row: the mean over a sequence's hidden tokens, then over its sequences."""
    rows, each = said.shape
    where, wanted = (inputs[name].reshape(rows * each, -1) for name in ("hidden_positions", "hidden_tokens"))
    logits = logits_at(said, said.states[rows * each :], where)
    known = (wanted >= 0).to(logits.dtype)
    losses = logits.logsumexp(-1) - logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return ((losses * known).sum(-1) / known.sum(-1).clamp(min=1)).view(rows, each).mean(1)


def outputs_of(scores: torch.Tensor) -> dict[str, Any]:
    """What metrics read: the templates' mean log-probabilities as logits."""
    return {"logits": scores.mean(1)}
