"""How much a fusion listens to each of its adapters, read out on rows at the end of a run."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from tunekit.fusion import fused_adapters, mean_weights

if TYPE_CHECKING:
    import torch

MAX_ROWS = 64
"""Rows that are looked at: the shares are means over some thousand tokens."""


def shares(model: torch.nn.Module, loader: Any, batch_size: int) -> dict[str, Any] | None:
    """The mean share of each adapter by layer, over evenly spaced rows of a loader.

    Args:
        model: What was trained; run in evaluation mode and left as it was.
        loader: Whose rows and collator are used; it is not iterated itself, which would draw random numbers.
        batch_size: Rows at once.

    Returns:
        `adapters`, `rows` and `layers` (each with `layer` and `shares`); None without a fusion, or where rows cannot be
        picked by their number.
    """
    import torch

    names = fused_adapters(model)
    rows: Any = getattr(loader, "dataset", None)
    if not names or not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")) or not len(rows):
        return None
    picked = [i * len(rows) // min(len(rows), MAX_ROWS) for i in range(min(len(rows), MAX_ROWS))]
    device = next(model.parameters()).device
    sums: dict[str, list[float]] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for start in range(0, len(picked), batch_size):
            part = picked[start : start + batch_size]
            batch = loader.collate_fn([rows[i] for i in part])
            inputs = {k: v.to(device) for k, v in batch.items() if isinstance(v, torch.Tensor)}
            for layer, found in mean_weights(model, _known(model, inputs)).items():
                so_far = sums.setdefault(layer, [0.0] * len(found))
                sums[layer] = [a + b * len(part) for a, b in zip(so_far, found, strict=True)]
    layers = [{"layer": n, "shares": [round(s / len(picked), 4) for s in total]} for n, total in sums.items()]
    return {"adapters": list(names), "rows": len(picked), "layers": layers}


def _known(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model's forward names; a collator may add more for an objective."""
    named = inspect.signature(model.forward).parameters
    return {k: v for k, v in inputs.items() if k in named} or inputs
