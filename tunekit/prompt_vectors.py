"""The learnt vectors of a soft prompt, themselves or as a small network makes them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn


class Vectors(nn.Module):
    """The learnt vectors themselves, (num_virtual_tokens, width), in fp32, with values yet to be set.

    A module with a forward of its own, so that ZeRO-3 gathers it where it is used.
    """

    def __init__(self, num_virtual_tokens: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_virtual_tokens, width, dtype=torch.float32, device=device))

    def forward(self) -> torch.Tensor:
        return self.weight

    def of(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The vectors by a state of this module."""
        return state["weight"]


class EncodedVectors(nn.Module):
    """Vectors that a small network makes out of others (Liu et al. 2021), a perceptron or a bidirectional LSTM."""

    def __init__(
        self,
        num_virtual_tokens: int,
        width: int,
        device: torch.device,
        kind: Literal["mlp", "lstm"],
        hidden: int,
        num_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self._made_with = (num_virtual_tokens, width, torch.device("meta"), kind, hidden, num_layers, dropout)
        on: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.embedding = nn.Embedding(num_virtual_tokens, width, **on)
        self.lstm: nn.LSTM | None = None
        if kind == "lstm":
            between = dropout if num_layers > 1 else 0.0  # torch warns where there is no layer to drop before
            self.lstm = nn.LSTM(width, hidden, num_layers, dropout=between, bidirectional=True, batch_first=True, **on)
            self.head = nn.Sequential(
                nn.Linear(2 * hidden, 2 * hidden, **on), nn.ReLU(), nn.Linear(2 * hidden, width, **on)
            )
        else:
            sizes = [width, *[hidden] * num_layers]
            layers: list[nn.Module] = []
            for into, out in pairwise(sizes):
                layers += [nn.Linear(into, out, **on), nn.ReLU(), nn.Dropout(dropout)]
            self.head = nn.Sequential(*layers, nn.Linear(hidden, width, **on))

    def forward(self) -> torch.Tensor:
        rows = self.embedding.weight
        if self.lstm is not None:
            # In its own 32 bits also under autocast: on some CPUs oneDNN has no LSTM in bfloat16.
            weightless = rows.device.type == "meta"
            with nullcontext() if weightless else torch.autocast(rows.device.type, enabled=False):
                rows = self.lstm(rows[None])[0][0]
        return self.head(rows)

    def of(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The vectors by a state of this module, without dropout; made apart, since its own weights may lie in parts over ranks."""
        # Made without values, so that saving draws no random numbers.
        alone = EncodedVectors(*self._made_with).eval()
        alone.load_state_dict(state, assign=True)
        return alone()


AnyVectors = Vectors | EncodedVectors
