"""Inside a student and its teacher: hidden states and attention of matched layers, compared row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from tunekit.errors import UnsupportedError
from tunekit.finding import error
from tunekit.objectives._divergence import HiddenLoss
from tunekit.objectives._live import unwrapped

ASKED = {"output_hidden_states": True}
ASKED_ATTENTION = {"output_attentions": True}


class Projection(nn.Module):
    """Learnt maps from the student's width to the teacher's, one for each stack of layers (Jiao et al., TinyBERT, 2020)."""

    def __init__(self, stacks: Sequence[str], width: int, teacher_width: int) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(width, teacher_width, bias=False) for name in stacks})

    def forward(self, states: torch.Tensor, stack: str) -> torch.Tensor:
        """States of a layer as wide as the teacher's."""
        made: torch.Tensor = self.maps[stack](states.to(self.maps[stack].weight.dtype))
        return made


class Stack(NamedTuple):
    """What one stack of layers answered: a tensor a layer; the hidden states before the first layer are left out."""

    name: str
    hidden: Sequence[torch.Tensor]
    attention: Sequence[torch.Tensor]
    mask: torch.Tensor
    """(rows, positions): 1 where a real token stands."""


def layer_map(student: int, teacher: int) -> tuple[int, ...]:
    """For each layer of a student the teacher's layer that it is matched with, counted from 1.

    Example:
        >>> layer_map(3, 6), layer_map(2, 5)
        ((2, 4, 6), (3, 5))
    """
    return tuple(max(1, (2 * i * teacher + student) // (2 * student)) for i in range(1, student + 1))


def widths(student: nn.Module, teacher: nn.Module) -> tuple[int, int]:
    """The width of the layers of both."""
    return _width(student), _width(teacher)


def _width(model: nn.Module) -> int:
    config = unwrapped(model).config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.hidden_size)


def stack_names(model: nn.Module) -> tuple[str, ...]:
    """The stacks of layers of a model."""
    return ("encoder", "decoder") if getattr(unwrapped(model).config, "is_encoder_decoder", False) else ("layers",)


def projection_for(student: nn.Module, teacher: nn.Module) -> Projection | None:
    """New maps for a pair; None where the widths are equal. In the dtype of the student's first floating parameter."""
    width, teacher_width = widths(student, teacher)
    if width == teacher_width:
        return None
    first = next(p for p in student.parameters() if p.is_floating_point())
    return Projection(stack_names(student), width, teacher_width).to(first.device, torch.float32)


def check_attention(model: nn.Module, whose: str) -> None:
    """Refuses an attention kernel that does not say what it attended to.

    Raises:
        UnsupportedError: `distillation-attention-kernel`.
    """
    kernel = getattr(unwrapped(model).config, "_attn_implementation", "eager")
    if kernel != "eager":
        fix = "set `attn_implementation: eager` in the plan" if whose == "student" else "load it with `attn_implementation=\"eager\"`"  # fmt: skip
        raise UnsupportedError(
            error("distillation-attention-kernel", f"`attention_weight` with a {whose} whose kernel is {kernel}", "only eager attention gives its probabilities", fix)
        )  # fmt: skip


def stacks(model: nn.Module, outputs: Any, inputs: Mapping[str, torch.Tensor], targets: torch.Tensor | None) -> list[Stack]:  # fmt: skip
    """What the stacks of a model answered.

    Args:
        model: The model.
        outputs: Its outputs, asked for with `ASKED`.
        inputs: The batch.
        targets: What an encoder-decoder's decoder is to write, -100 where nothing is.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    read = (torch.ones_like(ids) if mask is None else mask).flatten(0, -2)
    if stack_names(model) == ("layers",):
        return [Stack("layers", (outputs.get("hidden_states") or ())[1:], outputs.get("attentions") or (), read)]
    assert targets is not None, "an encoder-decoder has targets"
    masks = {"encoder": read, "decoder": targets.ne(-100).to(read.dtype)}
    return [
        Stack(name, (outputs.get(f"{name}_hidden_states") or ())[1:], outputs.get(f"{name}_attentions") or (), m)
        for name, m in masks.items()
    ]


def hidden_rows(
    student: Sequence[Stack], teacher: Sequence[Stack], chosen: tuple[int, ...], kind: HiddenLoss, maps: Projection | None
) -> torch.Tensor:  # fmt: skip
    """(rows,): the distance of matched hidden states, averaged over real tokens, layers and stacks."""
    found = []
    for mine, theirs in zip(student, teacher, strict=True):
        mask = mine.mask.float()
        for i, j in enumerate(chosen or layer_map(len(mine.hidden), len(theirs.hidden))):
            s, t = (states[:, -mask.shape[1] :] for states in (mine.hidden[i], theirs.hidden[j - 1]))
            s = s if maps is None else maps(s, mine.name)
            found.append(_over_tokens(_distance(s.float(), t.to(s.device).float(), kind), mask))
    return torch.stack(found).mean(0)


def _distance(s: torch.Tensor, t: torch.Tensor, kind: HiddenLoss) -> torch.Tensor:
    return (s - t).pow(2).mean(-1) if kind == "mse" else 1 - nn.functional.cosine_similarity(s, t, dim=-1)


def attention_rows(student: Sequence[Stack], teacher: Sequence[Stack], chosen: tuple[int, ...]) -> torch.Tensor:
    """(rows,): KL(teacher || student) of what matched layers attend to, averaged over heads, real tokens and layers.

    Where the two have different numbers of heads their averages are compared (Wang et al., MiniLM, 2020).
    """
    found = []
    for mine, theirs in zip(student, teacher, strict=True):
        mask = mine.mask.float()
        for i, j in enumerate(chosen or layer_map(len(mine.attention), len(theirs.attention))):
            s, t = (_real(a[i], mask) for a, i in ((mine.attention, i), (theirs.attention, j - 1)))
            t = t.to(s.device)
            if s.shape[1] != t.shape[1]:
                s, t = (a.mean(1, keepdim=True) for a in (s, t))
            kl = (t * ((t + _TINY).log() - (s + _TINY).log())).sum(-1).mean(1)
            found.append(_over_tokens(kl, mask))
    return torch.stack(found).mean(0)


_TINY = 1e-9


def _real(attention: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows, heads, queries, keys) of the text alone: learnt keys and virtual tokens stand before it."""
    length = mask.shape[1]
    cut = attention.float()[:, :, -length:, -length:]
    return cut / cut.sum(-1, keepdim=True).clamp(min=_TINY)


def _over_tokens(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows,): the mean over real tokens."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
