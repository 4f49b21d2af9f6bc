"""How long the batches of a run are, in the order in which they come, and which of them decide what the allocator holds."""

from __future__ import annotations

from typing import Literal

import numpy as np

Order = Literal["grouped", "random"]
"""`grouped`: sorted within windows of fifty steps, the longest row of all first, as this package's Trainer takes them
(`tunekit.sampler`); `random`: as a plain Trainer does."""
_WINDOW = 50
_MAX_ROWS = 20_000
_FIRST, _MOST = 3, 12


def padded_lengths(
    lengths: np.ndarray, rows: int, order: Order, step_rows: int, num_rows: int | None = None, seed: int = 0
) -> np.ndarray:
    """Padded lengths of the batches of one epoch, in order.

    Args:
        lengths: Tokens of a sample of rows.
        rows: Of a batch.
        order: How rows come.
        step_rows: Rows of an optimizer step.
        num_rows: Of the data; None: as many as there are lengths. More than the sample has are drawn from it.
        seed: Of the order.

    Example:
        >>> padded_lengths(np.array([3, 3, 3, 9]), 2, "grouped", 2).tolist()
        [9, 3]
        >>> padded_lengths(np.array([5, 5, 5, 5]), 2, "random", 2).tolist()
        [5, 5]
    """
    generator = np.random.default_rng(seed)
    count = min(num_rows or len(lengths), _MAX_ROWS)
    drawn = np.concatenate([lengths, generator.choice(lengths, max(0, count - len(lengths)))])
    order_of_rows = generator.permutation(drawn)
    if order == "grouped":
        window = max(1, min(len(drawn) // (4 * step_rows), _WINDOW)) * step_rows
        pieces = [np.sort(order_of_rows[i : i + window])[::-1] for i in range(0, len(drawn), window)]
        pieces.insert(0, pieces.pop(int(np.argmax([piece[0] for piece in pieces]))))
        order_of_rows = np.concatenate(pieces)
    batches = [order_of_rows[i : i + rows].max() for i in range(0, len(drawn), rows)]
    return np.array(batches, dtype=np.int64)


def telling(padded: np.ndarray) -> list[tuple[int, int]]:
    """(number, length) of the batches that a replay needs: the first ones, each that is longer than all before it, the one
    after it, and the shortest. The others find room in what those left.

    Example:
        >>> telling(np.array([4, 4, 4, 4, 9, 5, 4, 4]))
        [(1, 4), (2, 4), (3, 4), (5, 9), (6, 5)]
    """
    highest = np.maximum.accumulate(padded)
    records = [i for i in range(1, len(padded)) if padded[i] > highest[i - 1]]
    chosen = {*range(min(_FIRST, len(padded))), int(np.argmin(padded))}
    for i in reversed(records):
        if len(chosen) + 2 > _MOST:
            break
        chosen |= {i, min(i + 1, len(padded) - 1)}
    return [(i + 1, int(padded[i])) for i in sorted(chosen)]
