"""Batches of rows of like length, in an order that depends on nothing but the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class GroupedByLength(Sampler[int]):
    """Shuffles, then sorts by length within windows of fifty batches, so that little padding is needed.

    The grouping is transformers' own (`group_by_length`); its sampler draws from the global generator, whose state differs
    between ranks as soon as one of them has dropped out anything, and groups by the batch of one process. This one draws
    from a generator of its own and groups by the rows of a whole optimizer step: every rank sees the same order, any
    number of processes trains on the same steps, and a resumed run goes on in it.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of an optimizer step over accumulation and processes.
        seed: Of the order; each epoch has its own.
        num_fillers: Rows at the end of the data that teach nothing; they stay at the end of every epoch.

    Example:
        >>> list(GroupedByLength([3, 1, 2, 9], batch_size=2, seed=0)) == list(GroupedByLength([3, 1, 2, 9], 2, 0))
        True
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, num_fillers: int = 0) -> None:
        self.num_fillers = num_fillers
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        real = len(self.lengths) - self.num_fillers
        order = get_length_grouped_indices(self.lengths[:real], self.batch_size, generator=generator)
        return iter([*order, *range(real, len(self.lengths))])


class LongestFirst(Sampler[int]):
    """For an evaluation, whose figures do not depend on the order: the least padding, and the largest batch at once.

    Example:
        >>> list(LongestFirst([3, 1, 2, 3]))
        [0, 3, 2, 1]
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


def row_lengths(dataset: Any) -> list[int] | None:
    """Tokens of every row; of its longest choice for multiple choice; None where the rows do not say."""
    if "input_ids" not in (getattr(dataset, "column_names", None) or ()):
        return None
    if (found := _arrow_lengths(dataset)) is not None:
        return found
    ids = dataset["input_ids"]
    return [max(map(len, row), default=0) if row and isinstance(row[0], list) else len(row) for row in ids]


def _arrow_lengths(dataset: Any) -> list[int] | None:
    """The lengths read off the table, a hundred times faster than off the rows; None where a row is no plain list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not hasattr(dataset, "select_columns") or not hasattr(dataset, "with_format"):
        return None
    column = dataset.select_columns(["input_ids"]).with_format("arrow")[:].column("input_ids")
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or pa.types.is_nested(kind.value_type):
        return None
    return [int(n) for n in pc.list_value_length(column).to_pylist()]
