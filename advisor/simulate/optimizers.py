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


@dataclass(frozen=True, slots=True)
class LoraFA:
    """PEFT's LoRA-FA: the second factor alone learns; its gradient is projected, then Adam's update, pair by pair
    (peft/optimizers/lorafa.py)."""

    pairs: tuple[tuple[nn.Parameter, nn.Parameter], ...]
    """(A, B) of each layer."""
    moments: tuple[tuple[nn.Parameter, torch.Tensor], ...]

    def states(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        return self.moments

    def counters(self) -> Iterable[torch.Tensor]:
        return ()

    def step(self) -> None:
        with torch.no_grad():
            for a, b in self.pairs:
                if b.grad is not None:
                    inverse = torch.empty_like(a @ a.T)
                    projected = b.grad.bfloat16() @ inverse.bfloat16()
                    (b * projected.to(b.dtype)).sqrt()


def make(
    optim: str,
    params: Sequence[nn.Parameter],
    device: str,
    embeddings: frozenset[int] = frozenset(),
    model: nn.Module | None = None,
) -> tuple[Optimizer, str | None]:
    """The optimizer that transformers makes of a name, and what was assumed where it is not one we know.

    Args:
        optim: A transformers `OptimizerNames` value, or one of PEFT's or torch's optimizers as its benchmark names them.
        params: The parameters that learn.
        device: `cpu` or `cuda`: there torch's default is the form over lists (`foreach`), here the plain loop.
        embeddings: `id`s of embedding weights, which the Trainer keeps in 32 bits under 8-bit optimizers.
        model: For optimizers that look at what a parameter is for; LoRA-FA freezes half of them.
    """
    from torch import optim as t

    if not params:
        return InPlace(()), None
    foreach = device == "cuda"
    name = optim.lower().removeprefix("paged_").replace("-", "_")
    if name in ("adamw_torch", "adamw", "lora+", "loraplus", "riemannian"):
        return Looped(t.AdamW(params, foreach=foreach)), None
    if name in _IN_LISTS:
        return Looped(_IN_LISTS[name](params, lr=1e-3, foreach=foreach)), None
    if name == "muon" and all(p.dim() == 2 for p in params):
        return Looped(t.Muon(params)), None
    if name in ("lora_fa", "lorafa") and model is not None:
        return _lorafa(model), None
    if name in _STATES:
        return InPlace(_plain_states(params, _STATES[name])), None
    if name == "adamw_anyprecision":
        return InPlace(tuple((p, _empty(p.numel(), torch.float32)) for p in params for _ in range(2))), None
    if name == "adafactor":
        return Looped(_adafactor(params)), None
    if name.startswith(("galore", "apollo")):
        eight = "8bit" in name
        why = f"optimizer {optim}: rank {_LOW_RANK} for every matrix outside the embeddings, as transformers' defaults are"
        return InPlace(_low_rank_states(params, embeddings, eight)), why
    count = {"adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1}.get(name.split("_")[0])
    if name in _WHOLE_STATES or (count is not None and name.endswith(("8bit", "32bit", "4bit"))):
        small = name not in _WHOLE_STATES and not name.endswith("32bit")
        states = _bnb_states(params, count or 0, small, embeddings, packed=name.endswith("4bit"))
        return InPlace(states, on_device=not optim.startswith("paged_")), None
    return Looped(t.AdamW(params, foreach=foreach)), f"optimizer {optim} is counted as AdamW"


_IN_LISTS: dict[str, Any] = {
    "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam, "adamax": torch.optim.Adamax, "adadelta": torch.optim.Adadelta, "adagrad": torch.optim.Adagrad,
    "asgd": torch.optim.ASGD, "rprop": torch.optim.Rprop,
}  # fmt: skip
"""torch's optimizers that work over lists of parameters."""
_STATES = {
    "adamw_torch_fused": 2, "lomo": 0, "adalomo": 0, "schedule_free_sgd": 1, "schedule_free_adamw": 2,
    "schedule_free_radam": 2, "stable_adamw": 2, "grokadamw": 3, "adamw_hf": 2,
}  # fmt: skip
"""States of a parameter's size where the update takes no more, or next to it (LOMO updates within the backward pass)."""
_WHOLE_STATES = ("ademamix", "rmsprop_bnb")
"""bitsandbytes' optimizers whose names say no number of bits: transformers asks for 32."""
_LOW_RANK = 128
"""transformers' default for GaLore and APOLLO (trainer_optimizer.py)."""


def _lorafa(model: nn.Module) -> LoraFA:
    named = dict(model.named_parameters())
    pairs = tuple(
        (p, named[n.replace("lora_A", "lora_B")])
        for n, p in named.items()
        if "lora_A" in n and n.replace("lora_A", "lora_B") in named
    )
    for a, _ in pairs:
        a.requires_grad_(False)
    return LoraFA(pairs, _plain_states([p for p in named.values() if p.requires_grad], 2))


def _low_rank_states(
    params: Sequence[nn.Parameter], embeddings: frozenset[int], eight: bool
) -> tuple[tuple[nn.Parameter, torch.Tensor], ...]:
    """Adam's moments in a subspace and the projection onto it (Zhao et al., GaLore, 2024; Zhu et al., APOLLO, 2024)."""
    pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
    kind = torch.uint8 if eight else torch.float32
    for p in params:
        if p.dim() == 2 and id(p) not in embeddings and min(p.shape) > _LOW_RANK:
            pairs += [(p, _empty(max(p.shape) * _LOW_RANK, kind)) for _ in range(2)]
            pairs.append((p, _empty(min(p.shape) * _LOW_RANK, p.dtype)))
        else:
            pairs += [(p, torch.empty_like(p, requires_grad=False)) for _ in range(2)]
    return tuple(pairs)


def _adafactor(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    from transformers import Adafactor

    return Adafactor(params, scale_parameter=False, relative_step=False, lr=1e-3)


def _plain_states(params: Sequence[nn.Parameter], count: int) -> tuple[tuple[nn.Parameter, torch.Tensor], ...]:
    return tuple((p, torch.empty_like(p, requires_grad=False)) for p in params for _ in range(count))


def _bnb_states(
    params: Sequence[nn.Parameter], count: int, small_states: bool, embeddings: frozenset[int], packed: bool = False
) -> tuple[tuple[nn.Parameter, torch.Tensor], ...]:
    """bitsandbytes' states: one byte a value and a scale a block, or 32 bits for small parameters and embeddings."""
    pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
    for p in params:
        eight = small_states and p.numel() >= _SMALL and id(p) not in embeddings
        for _ in range(count):
            values = -(-p.numel() // 2) if packed and eight else p.numel()
            pairs.append((p, _empty(values, torch.uint8 if eight else torch.float32)))
            if eight:
                pairs.append((p, _empty(-(-p.numel() // _QUANTILE_BLOCK), torch.float32)))
    return tuple(pairs)


def _empty(numel: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(numel, dtype=dtype, device="meta")


def warm_up(
    optimizer: Optimizer, params: Sequence[nn.Parameter], recorder: Any, model: nn.Module | None = None
) -> list[torch.Tensor]:
    """Takes one step with empty gradients so that the states exist, as they do from the second real step on.

    Returns:
        What the method keeps from step to step beside the optimizer's states.
    """
    kept = rank_importance(model) if model is not None else None
    if kept is None and isinstance(optimizer, InPlace | LoraFA):
        return []
    for p in params:
        p.grad = torch.empty_like(p)
    with recorder:
        if not isinstance(optimizer, InPlace | LoraFA):
            optimizer.step()
        kept = rank_importance(model) if model is not None else None
    for p in params:
        p.grad = None
    return kept or []


def rank_importance(model: nn.Module) -> list[torch.Tensor] | None:
    """What AdaLoRA does after each update: three running figures for every value of its factors.

    Returns:
        The figures that are kept; None for any other method.
    """
    allocator = getattr(getattr(model, "base_model", None), "rankallocator", None)
    if allocator is None:
        return None
    if all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n and p.requires_grad):
        allocator.update_ipt(allocator_model(model))
    return [t for kept in (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc) for t in kept.values()]


def allocator_model(model: Any) -> nn.Module:
    """The model whose parameters AdaLoRA's allocator names."""
    inner: nn.Module = model.base_model.model
    return inner
