"""Optimizers on weightless tensors: the real ones where they run there, their states' sizes where they do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from tunekit.advisor.simulate.trace import Cost

_QUANTILE_BLOCK = 256
"""Values that share one scale in bitsandbytes' 8-bit states (bitsandbytes/optim/optimizer.py, since 0.45)."""
_SMALL = 4096
"""Parameters with fewer values keep 32-bit states there."""


class Optimizer(Protocol):
    """What the loop needs of an optimizer."""

    def states(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        """(parameter, state tensor) pairs that live on the device."""

    def counters(self) -> Iterable[torch.Tensor]:
        """Step counters, which live on the host."""

    def step(self) -> Cost | None:
        """Updates the parameters; the cost where the update is one kernel that no mode can see."""


@dataclass(frozen=True, slots=True)
class Looped:
    """A torch optimizer that runs on weightless tensors, every temporary seen. Its step counters stay on the host."""

    optimizer: torch.optim.Optimizer

    def states(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        for p, state in self.optimizer.state.items():
            yield from ((p, t) for name, t in state.items() if isinstance(t, torch.Tensor) and name != "step")

    def counters(self) -> Iterable[torch.Tensor]:
        return (
            t
            for state in self.optimizer.state.values()
            for n, t in state.items()
            if n == "step" and isinstance(t, torch.Tensor)
        )

    def step(self) -> None:
        self.optimizer.step()


@dataclass(frozen=True, slots=True)
class InPlace:
    """An optimizer whose update is one kernel over its states, without temporaries."""

    pairs: tuple[tuple[nn.Parameter, torch.Tensor], ...]
    on_device: bool = True
    """Whether the states live on the device (paged ones do not)."""

    def states(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        return self.pairs if self.on_device else ()

    def counters(self) -> Iterable[torch.Tensor]:
        return ()

    def step(self) -> Cost:
        params = {id(p): p for p, _ in self.pairs}.values()
        moved = sum(3 * p.numel() * p.element_size() for p in params)
        moved += sum(2 * s.numel() * s.element_size() for _, s in self.pairs)
        return Cost.by_parameters("fused_optimizer", 12 * sum(p.numel() for p in params), moved, "float32")


def make(
    optim: str, params: Sequence[nn.Parameter], device: str, embeddings: frozenset[int] = frozenset()
) -> tuple[Optimizer, str | None]:
    """The optimizer that transformers makes of a name, and what was assumed where it is not one we know.

    Args:
        optim: A transformers `OptimizerNames` value.
        params: The parameters that learn.
        device: `cpu` or `cuda`: there torch's default is the form over lists (`foreach`), here the plain loop.
        embeddings: `id`s of embedding weights, which the Trainer keeps in 32 bits under 8-bit optimizers.
    """
    from torch import optim as t

    foreach = device == "cuda"
    name = optim.removeprefix("paged_")
    if name == "adamw_torch":
        return Looped(t.AdamW(params, foreach=foreach)), None
    if name == "adamw_torch_fused":
        return InPlace(_plain_states(params, 2)), None
    if name == "sgd":
        return Looped(t.SGD(params, foreach=foreach)), None
    if name == "adagrad":
        return InPlace(_plain_states(params, 1)), None
    if name == "rmsprop":
        return Looped(t.RMSprop(params, foreach=foreach)), None
    if name == "adafactor":
        return Looped(_adafactor(params)), None
    count = {"adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1}.get(name.split("_")[0])
    if count is not None and name.endswith(("8bit", "32bit")):
        states = _bnb_states(params, count, name.endswith("8bit"), embeddings)
        return InPlace(states, on_device=not optim.startswith("paged_")), None
    return Looped(t.AdamW(params, foreach=foreach)), f"optimizer {optim} is counted as AdamW"


def _adafactor(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    from transformers import Adafactor

    return Adafactor(params, scale_parameter=False, relative_step=False, lr=1e-3)


def _plain_states(params: Sequence[nn.Parameter], count: int) -> tuple[tuple[nn.Parameter, torch.Tensor], ...]:
    return tuple((p, torch.empty_like(p, requires_grad=False)) for p in params for _ in range(count))


def _bnb_states(
    params: Sequence[nn.Parameter], count: int, small_states: bool, embeddings: frozenset[int]
) -> tuple[tuple[nn.Parameter, torch.Tensor], ...]:
    """bitsandbytes' states: one byte a value and a scale a block, or 32 bits for small parameters and embeddings."""
    pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
    for p in params:
        eight = small_states and p.numel() >= _SMALL and id(p) not in embeddings
        for _ in range(count):
            pairs.append((p, _empty(p.numel(), torch.uint8 if eight else torch.float32)))
            if eight:
                pairs.append((p, _empty(-(-p.numel() // _QUANTILE_BLOCK), torch.float32)))
    return tuple(pairs)


def _empty(numel: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(numel, dtype=dtype, device="meta")


def warm_up(optimizer: Optimizer, params: Sequence[nn.Parameter], recorder: Any) -> None:
    """Takes one step with empty gradients so that the states exist, as they do from the second real step on."""
    if isinstance(optimizer, InPlace):
        return
    for p in params:
        p.grad = torch.empty_like(p)
    with recorder:
        optimizer.step()
    for p in params:
        p.grad = None
