"""Losses over a vocabulary in pieces: logits are made for a few positions at a time, twice, and never all at once."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tunekit.objectives._live import on_meta, unwrapped

if TYPE_CHECKING:
    import torch
    from torch import nn

_CHANGES_LOGITS: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models that do something to the logits after their output layer (a soft cap, a bias): theirs are made whole."""

_KNOWN_END: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models of which it was seen what they do after it; looking at values makes a GPU wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a language model says at every position: its last states and the layer that turns them into logits."""

    states: torch.Tensor
    """(rows, positions, width), or the logits themselves where `head` is None."""
    head: Any
    outputs: Any
    """The model's own; with logits of the first position only where `head` is given."""
    after: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What the model does to the logits after the layer: a soft cap, a scale."""
    precision: tuple[str, torch.dtype] | None = None
    """Device and dtype of the autocast that the layer runs under inside the model."""
    words: int = 0
    """Logits of a position, where `head` is given."""

    def last(self, positions: int) -> torch.Tensor:
        """The states of the last `positions`, one a row of a matrix: soft prompts stand before the text."""
        return self.states[:, -positions:].reshape(-1, self.states.shape[-1])

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The logits of some states."""
        if self.head is None:
            return states
        import torch

        with (
            contextlib.nullcontext() if self.precision is None else torch.autocast(self.precision[0], self.precision[1])
        ):
            made = self.head(states)
        return made if self.after is None else self.after(made)


def answers(
    model: nn.Module,
    inputs: Mapping[str, Any],
    whole: bool = False,
    only: torch.Tensor | None = None,
    positions: int = 0,
) -> Answers:
    """Runs a language model up to its output layer.

    The layer is called with the first position only; that this is the last thing the model does, but for a soft cap or a
    scale that its configuration names, is seen from its logits. Otherwise, under ZeRO-3, or where `whole` is asked for, they
    are made whole, or, where `only` is given, for those places alone.

    Args:
        model: The model.
        inputs: Without labels.
        whole: Whether the logits of every position are wanted.
        only: Places, counted over the rows, whose logits are wanted: `states` are then theirs, where `head` is None.
        positions: Of a row, at its end, over which places are counted.
    """
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    if not whole and head is not None and inner not in _CHANGES_LOGITS and not _is_divided(head):
        after = _after(inner)
        with _first_position_only(head) as seen:
            outputs = model(**inputs)
        if inner in _KNOWN_END or seen.is_the_end(outputs["logits"], on_meta(inner), after):
            _KNOWN_END.add(inner)
            words = int(outputs["logits"].shape[-1])
            return Answers(states=seen.states[0], head=head, outputs=outputs, after=after, precision=seen.precision, words=words)  # fmt: skip
        _CHANGES_LOGITS.add(inner)
    if only is None or head is None:
        outputs = model(**inputs)
        made = outputs["logits"]
        made = made if only is None else made[:, -positions:].reshape(-1, made.shape[-1])[only]
        return Answers(states=made, head=None, outputs=outputs)
    handle = head.register_forward_pre_hook(partial(_these_positions, only, positions))
    try:
        outputs = model(**inputs)
    finally:
        handle.remove()
    return Answers(states=outputs["logits"][0], head=None, outputs=outputs)


def _these_positions(only: torch.Tensor, positions: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    states = args[0][:, -positions:].reshape(-1, args[0].shape[-1])
    return (states[only.to(states.device)][None], *args[1:])


def _after(model: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What the model's configuration says is done to the logits: Gemma's soft cap, Granite's and Cohere's scale."""
    import torch

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    cap = getattr(config, "final_logit_softcapping", None)
    divided, times = getattr(config, "logits_scaling", None), getattr(config, "logit_scale", None)
    if isinstance(cap, int | float) and cap:
        return lambda made: torch.tanh(made / cap) * cap
    if isinstance(divided, int | float) and divided not in (0, 1):
        return lambda made: made / divided
    if isinstance(times, int | float) and times != 1:
        return lambda made: made * times
    return None


def _is_divided(head: nn.Module) -> bool:
    """Whether the layer's weight lies in shards (ZeRO-3, FSDP), which are whole inside the model's own forward only."""
    return any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in head.parameters())


@dataclass(slots=True)
class _Seen:
    states: list[Any] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    precision: tuple[str, torch.dtype] | None = None

    def is_the_end(
        self, logits: torch.Tensor, meta: bool, after: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> bool:
        """Whether the model returned what the layer, and what its configuration names, made of the first position."""
        import torch

        if len(self.made) != 1 or self.made[0].shape != logits.shape:
            return False
        if meta:
            return True
        made, got = self.made[0].detach(), logits.detach()
        if after is None:
            return torch.equal(made.float(), got.float())
        # In 16 bits the order of a division and a product may round otherwise; a cap left out is off by far more.
        return torch.allclose(after(made).float(), got.float(), rtol=1e-5 if got.element_size() >= 4 else 1e-2)


@contextmanager
def _first_position_only(head: nn.Module) -> Iterator[_Seen]:
    """While it lasts, the layer gets the first position alone and the states of all are kept."""
    import torch

    seen = _Seen()

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.states.append(args[0])
        device = args[0].device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            seen.precision = (device, torch.get_autocast_dtype(device))
        return (args[0][:, :1], *args[1:])

    def after(_: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        seen.made.append(made)

    handles = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def sum_in_pieces(piece: Callable[..., torch.Tensor], rows: tuple[torch.Tensor, ...], size: int) -> torch.Tensor:
    """The sum of `piece` over slices of `size` rows; what a slice needs is made again for its gradient.

    The last slice's is kept instead: the backward pass begins with it, so that nothing else is alive beside it.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    total = None
    for start in range(0, len(rows[0]), size):
        part = [r[start : start + size] for r in rows]
        again = torch.is_grad_enabled() and start + size < len(rows[0])
        made = checkpoint(piece, *part, use_reentrant=False) if again else piece(*part)
        total = made if total is None else total + made
    assert total is not None
    return total


def decoder_targets(model: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """For each position the token that follows; -100 where nothing does."""
    from torch.nn.functional import pad

    if getattr(unwrapped(model).config, "is_encoder_decoder", False):
        return labels
    return pad(labels[:, 1:], (0, 1), value=-100)


def with_decoder_inputs(model: nn.Module, inputs: dict[str, Any], labels: torch.Tensor) -> dict[str, Any]:
    """The inputs, for an encoder-decoder with what its decoder reads: the labels moved by one."""
    inner = unwrapped(model)
    if not getattr(inner.config, "is_encoder_decoder", False) or "decoder_input_ids" in inputs:
        return inputs
    return {**inputs, "decoder_input_ids": inner.prepare_decoder_input_ids_from_labels(labels=labels)}
