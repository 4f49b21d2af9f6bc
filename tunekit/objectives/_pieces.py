"""The loss over a vocabulary, a few positions at a time: against a teacher that answers now, or against what it answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tunekit.objectives import _liger
from tunekit.objectives._cached_loss import cached_sum
from tunekit.objectives._divergence import Divergence, divergence
from tunekit.objectives._taught import TOP, top_divergence
from tunekit.objectives._vocabulary import Answers, sum_in_pieces

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """`hard_weight * cross_entropy + (1 - hard_weight) * temperature**2 * divergence`, summed over supervised positions."""

    kind: Divergence
    temperature: float
    beta: float
    hard_weight: float
    at_once: int
    kernel: str = "auto"
    """`pieces`: never Liger's."""

    def against(self, said: Answers, right: Answers, targets: torch.Tensor) -> torch.Tensor:
        """The sum where the teacher answers now.

        Args:
            said: By the student.
            right: By the teacher.
            targets: (rows, positions), -100 where nothing is supervised.
        """
        length = targets.shape[1]
        rows = _kept((said.last(length), right.last(length), targets.reshape(-1)))
        if self.kernel != "pieces" and _liger.applies(said, right, rows[2]):
            return _liger.fused_sum(
                said, right, rows, self.kind, self.temperature, self.beta, self.hard_weight, self.at_once
            )
        return sum_in_pieces(partial(self._live, said.logits, right.logits), rows, self.at_once)

    def against_cached(self, said: Answers, inputs: Mapping[str, torch.Tensor], targets: torch.Tensor, vocabulary: int) -> torch.Tensor:  # fmt: skip
        """The sum where the batch holds what the teacher answered over the first words of the vocabulary."""
        length, (ids, logs, tail) = targets.shape[1], (inputs[name] for name in TOP)
        k = ids.shape[-1]
        rows = _kept((said.last(length), ids.reshape(-1, k), logs.reshape(-1, k), tail.reshape(-1), targets.reshape(-1)))  # fmt: skip
        return sum_in_pieces(partial(self._cached, said.logits, vocabulary), rows, self.at_once)

    def labels_only(self, said: Answers, targets: torch.Tensor) -> torch.Tensor:
        """The sum of the labels' own loss, where nobody teaches."""
        rows = _kept((said.last(targets.shape[1]), targets.reshape(-1)))
        return sum_in_pieces(lambda s, y: _cross_entropy(said.logits(s), y), rows, self.at_once)

    def _live(self, speak: Any, teach: Any, s: torch.Tensor, t: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum over some positions. Vocabularies padded to different sizes are compared in what both have."""
        import torch

        logits = speak(s)
        with torch.no_grad():
            taught = teach(t).to(logits.device)
        both = min(logits.shape[-1], taught.shape[-1])
        soft = divergence(logits[:, :both], taught[:, :both], self.kind, self.temperature, self.beta)
        return self._mixed(logits, soft, targets)

    def _cached(
        self, speak: Any, vocabulary: int, s: torch.Tensor, ids: torch.Tensor, logs: torch.Tensor, tail: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:  # fmt: skip
        logits = speak(s)
        if self.kind == "forward-kl" and ids.shape[-1] < vocabulary:
            wide = logits if logits.element_size() >= 4 else logits.float()
            return cached_sum(wide, ids, logs, tail, targets, vocabulary, self.temperature, self.hard_weight)
        soft = top_divergence(logits[:, :vocabulary], ids, logs, tail, self.kind, self.temperature, self.beta)
        return self._mixed(logits, soft, targets)

    def _mixed(self, logits: torch.Tensor, soft: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        soft = (1 - self.hard_weight) * soft.where(targets.ne(-100), 0.0).sum()
        return soft + self.hard_weight * _cross_entropy(logits, targets) if self.hard_weight else soft


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import cross_entropy

    wide = logits if logits.element_size() >= 4 else logits.float()
    return cross_entropy(wide, targets, ignore_index=-100, reduction="sum")


def _kept(rows: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Only the rows whose target, the last of the tuple, is supervised; one row where none is. Weightless ones all."""
    targets = rows[-1]
    if targets.is_meta:
        return tuple(r.to(targets.device) for r in rows)
    where = targets.ne(-100).nonzero().squeeze(-1)
    where = where if len(where) else where.new_zeros(1)
    return tuple(r[where.to(r.device)] for r in rows)
