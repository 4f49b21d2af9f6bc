"""Pack: rows of a causal-lm joined to full sequences that stay apart by their position ids."""

from __future__ import annotations

import uuid
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunekit.data.labels import IGNORE
from tunekit.data.place import place
from tunekit.data.quiet import no_bars
from tunekit.errors import InvalidError
from tunekit.finding import error

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

COLUMNS = ("input_ids", "labels", "position_ids")
"""What a joined row holds. Position ids start at 0 for each example: by that attention kernels keep examples apart
(transformers' `find_packed_sequence_indices`). An attention mask would overrule them, so there is none."""
_ROWS_AT_ONCE = 256


def best_fit(lengths: Sequence[int], capacity: int, seed: int = 0) -> list[list[int]]:
    """Which rows share a sequence, by best-fit decreasing: longest first, each where the least room is left.

    Args:
        lengths: Tokens of each row.
        capacity: Tokens of a sequence; a row that is longer stands alone.
        seed: Decides among rows of equal length.

    References:
        D. S. Johnson, Near-optimal bin packing algorithms, 1973: at most 11/9 of the fewest sequences, and a few.

    Example:
        >>> best_fit([5, 3, 4, 2, 2], capacity=8)
        [[0, 1], [2, 3, 4]]
    """
    import numpy as np

    sizes = np.asarray(lengths, dtype=np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    groups: list[list[int]] = []
    waiting: dict[int, list[int]] = {}  # groups by the room that is left in them
    rooms: list[int] = []  # the keys of `waiting`, ascending: no more than there are tokens in a sequence
    for row in shuffled[np.argsort(-sizes[shuffled], kind="stable")].tolist():
        size = int(sizes[row])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            group, room = len(groups), capacity
            groups.append([])
        else:
            room = rooms[at]
            group = waiting[room].pop()
            if not waiting[room]:
                del waiting[room], rooms[at]
        groups[group].append(row)
        left = room - size
        if left > 0:
            if left not in waiting:
                waiting[left] = []
                insort(rooms, left)
            waiting[left].append(group)
    return [sorted(group) for group in groups]


def pack(rows: datasets.Dataset, max_length: int, seed: int = 0) -> datasets.Dataset:
    """Tokenised rows joined to sequences of at most `max_length` tokens; every row is in exactly one.

    The first token of an example is no target (its label is -100), as it is none in a row of its own.

    Args:
        rows: With `input_ids` and `labels`; left as they are.
        max_length: Tokens of a sequence; a row that is longer stands alone.
        seed: Decides which rows of equal length meet.

    Raises:
        InvalidError: `packing-labels`: the rows carry no labels.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]], "labels": [[1, 2, 3], [-100, 5]]})
        >>> pack(rows, 8)[0]
        {'input_ids': [1, 2, 3, 4, 5], 'labels': [-100, 2, 3, -100, 5], 'position_ids': [0, 1, 2, 0, 1]}
    """
    _check(rows)
    return _joined(rows, best_fit(row_sizes(rows), max_length, seed))


def marked(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows, each with the position ids by which a collator may lay several of them end to end."""
    _check(rows)
    return _joined(rows, [[i] for i in range(len(rows))])


def row_sizes(rows: datasets.Dataset) -> list[int]:
    """Tokens of every row, read off the offsets in the table."""
    import pyarrow.compute as pc

    sizes: list[int] = []
    for part in rows.with_format("arrow").select_columns("input_ids").iter(batch_size=10_000):
        sizes += pc.list_value_length(part["input_ids"]).to_pylist()
    return sizes


def _check(rows: datasets.Dataset) -> None:
    if "labels" not in rows.column_names:
        why, fix = "what a row teaches must be known before rows are joined", "add `labels`, or set `packing: false`"
        raise InvalidError(error("packing-labels", "`packing` with tokenised rows without `labels`", why, fix))


def _joined(rows: datasets.Dataset, groups: list[list[int]]) -> datasets.Dataset:
    import datasets

    plain = rows.select_columns(["input_ids", "labels"]).with_format("arrow")
    features = datasets.Features({name: datasets.Sequence(datasets.Value("int64")) for name in COLUMNS})
    index = datasets.Dataset.from_dict({"rows": groups})

    def join(batch: dict[str, list[list[int]]]) -> pa.Table:
        return _table(plain[[i for group in batch["rows"] for i in group]], [len(group) for group in batch["rows"]])

    with no_bars():
        return index.map(
            join, batched=True, batch_size=_ROWS_AT_ONCE, remove_columns=["rows"], features=features,
            load_from_cache_file=False, new_fingerprint=uuid.uuid4().hex[:16], **place(rows),
        )  # fmt: skip


def _table(rows: pa.Table, counts: list[int]) -> pa.Table:
    """The rows of a table, `counts` of them at a time, end to end."""
    import numpy as np
    import pyarrow as pa

    ids, labels = (rows[name].combine_chunks() for name in ("input_ids", "labels"))
    sizes = np.diff(ids.offsets.to_numpy())
    starts = np.concatenate([[0], np.cumsum(sizes)])
    targets = labels.flatten().to_numpy(zero_copy_only=False).astype(np.int64, copy=True)
    targets[starts[:-1][sizes > 0]] = IGNORE
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
    offsets = pa.array(starts[np.concatenate([[0], np.cumsum(counts)])].astype(np.int32))
    values = (ids.flatten().cast(pa.int64()), pa.array(targets), pa.array(positions))
    lists = [pa.ListArray.from_arrays(offsets, v) for v in values]
    return pa.Table.from_arrays(lists, names=list(COLUMNS))
