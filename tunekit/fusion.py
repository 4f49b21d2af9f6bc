"""AdapterFusion: attention over the outputs of several adapters, learnt for each place and token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tunekit.bottleneck import CHILD, activate, sites

LEARNT = "fusion"
"""Name of the fusion in its place's module."""


class Fusion(nn.Module):
    """Which adapter's output to take, from what they all read (Pfeiffer et al. 2021).

    The score of adapter n is q · K u_n with the query q of what the adapters read and their outputs u_n, the result
    V Σ softmax(score)_n u_n. K and V stand outside the sum over adapters, so each costs one multiplication and not one an
    adapter. A bias of the key would add the same to every score; there is none. V is learnt as its difference from the
    identity, so that weight decay pulls towards taking the outputs as they are.
    """

    def __init__(self, width: int, has_value: bool, dropout: float, device: torch.device) -> None:
        super().__init__()
        kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.query_weight = nn.Parameter(nn.init.normal_(torch.empty(width, width, **kind), std=0.02))
        self.query_bias = nn.Parameter(torch.zeros(width, **kind))
        self.key_weight = nn.Parameter(nn.init.normal_(torch.empty(width, width, **kind), std=0.02))
        self.value_change = nn.Parameter(torch.zeros(width, width, **kind)) if has_value else None
        self.dropout = nn.Dropout(dropout)
        self.listens = False
        self.heard: torch.Tensor | None = None

    def forward(self, read: torch.Tensor, outputs: list[torch.Tensor]) -> torch.Tensor:
        """The combined output, from what the adapters read and the output of each; all (..., width)."""
        kind = read.dtype
        query = nn.functional.linear(read, self.query_weight.to(kind), self.query_bias.to(kind))
        query = query @ self.key_weight.to(kind)
        scores = torch.stack([(query * out).sum(-1) for out in outputs], dim=-1)
        weights = self.dropout(scores).softmax(dim=-1)
        if self.listens:
            self.heard = weights.detach()
        mixed = sum(weights[..., i : i + 1] * out for i, out in enumerate(outputs))
        assert isinstance(mixed, torch.Tensor), "there is at least one adapter"
        return mixed if self.value_change is None else mixed + nn.functional.linear(mixed, self.value_change.to(kind))


def put_fusion(model: nn.Module, names: tuple[str, ...], has_value: bool, dropout: float) -> None:
    """Puts a fresh fusion of these adapters wherever they sit, and makes it active."""
    activate(model, *names)
    for site in sites(model):
        if site.chosen():
            device = next(site.parameters()).device
            site.fusion = Fusion(site.at.width, has_value, dropout, device).train(site.training)


def fusions(model: nn.Module) -> dict[str, Fusion]:
    """The fusions on a model by the dotted name of their layer and their place in it."""
    return {f"{s.at.block}.{s.at.location}": s.fusion for s in sites(model) if isinstance(s.fusion, Fusion)}


def fused_adapters(model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters that the fusions combine, in the order of their weights; empty without a fusion."""
    return next((site.active for site in sites(model) if site.fusion is not None), ())


def learnt_by_fusion(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of the fusions."""
    marked = (n.split(".") for n, _ in model.named_parameters())
    return frozenset(".".join(parts) for parts in marked if CHILD in parts and LEARNT in parts)


@contextmanager
def _listening(found: Mapping[str, Fusion]) -> Iterator[None]:
    for fusion in found.values():
        fusion.listens = True
    try:
        yield
    finally:
        for fusion in found.values():
            fusion.listens, fusion.heard = False, None


@torch.no_grad()
def attention_weights(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How much of each adapter every token takes, by layer: which task helped where.

    Args:
        model: A model with a fusion on it; run in evaluation mode and left as it was.
        inputs: One batch, as the model takes it.

    Returns:
        For each layer and place a tensor (rows, tokens, adapters) that sums to one over the adapters, in the order in
        which the method names them.

    Example:
        >>> from tunekit.fusion import attention_weights
        >>> attention_weights(torch.nn.Linear(1, 1), {"input": torch.ones(1, 1)})
        {}
    """
    found, training = fusions(model), [m for m in model.modules() if m.training]
    try:
        model.eval()
        with _listening(found):
            model(**inputs)
            return {name: f.heard for name, f in found.items() if f.heard is not None}
    finally:
        for module in training:
            module.training = True


def mean_weights(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, tuple[float, ...]]:
    """The mean share of each adapter by layer, over the tokens that are no padding."""
    mask = inputs.get("attention_mask")
    result = {}
    for name, weights in attention_weights(model, inputs).items():
        flat = weights.float().flatten(0, -2)
        if mask is not None and mask.numel() == len(flat):
            flat = flat[mask.flatten().bool()]
        result[name] = tuple(float(x) for x in flat.mean(0))
    return result
