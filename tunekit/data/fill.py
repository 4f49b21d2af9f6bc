"""Rows that teach nothing, so that the last batch of an epoch is whole on every rank and no row is seen twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

IGNORED = -100


def filled(rows: datasets.Dataset, multiple: int) -> datasets.Dataset:
    """The rows, with as many more as make their number a multiple; the further ones carry no label.

    accelerate would fill the last batch with rows from the start of the epoch, which are then seen twice, and the last
    step is not the one of a single process. Rows whose labels cannot be left out (numbers, spans) stay as they are.

    Args:
        rows: Tokenised rows.
        multiple: Rows that all ranks together take at once.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3]]})
        >>> filled(rows, 4)["labels"][2:]
        [[-100], [-100]]
    """
    import datasets

    missing = -len(rows) % multiple
    if not missing or not ignorable(rows):
        return rows
    shortest = min(range(len(rows)), key=lambda i: _size(rows[i]["input_ids"]))
    blank = {**rows[shortest], "labels": _ignored(rows[shortest]["labels"])}
    more = datasets.Dataset.from_list([blank] * missing, features=rows.features)
    return datasets.concatenate_datasets([rows, more])


def ignorable(rows: Any) -> bool:
    """Whether a row can be there without a label: where labels are ids."""
    if "labels" not in rows.column_names:
        return False
    feature = rows.features["labels"]
    while getattr(feature, "feature", None) is not None:
        feature = feature.feature
    return str(getattr(feature, "dtype", "")).startswith("int")


def num_fillers(rows: Any) -> int:
    """How many of the last rows carry no label at all.

    Example:
        >>> import datasets
        >>> num_fillers(datasets.Dataset.from_dict({"labels": [[-100, 5], [-100], [-100]]}))
        2
    """
    if not hasattr(rows, "column_names") or "labels" not in (rows.column_names or ()):
        return 0
    count = 0
    while count < len(rows) and _blank(rows[len(rows) - 1 - count]["labels"]):
        count += 1
    return count


def real_rows(remainder: int, rank: int, size: int) -> int:
    """How many rows of a rank's last batch are its own, where accelerate has filled it up with others.

    Args:
        remainder: Rows that were left for all ranks together.
        rank: Whose batch.
        size: Rows of the batch as it is.

    Example:
        >>> [real_rows(5, rank, 4) for rank in range(3)]
        [4, 1, 0]
    """
    return min(size, max(0, remainder - rank * size))


def _size(ids: Any) -> int:
    return sum(map(len, ids)) if ids and isinstance(ids[0], list) else len(ids)


def _ignored(labels: Any) -> Any:
    return [_ignored(x) for x in labels] if isinstance(labels, list) else IGNORED


def _blank(labels: Any) -> bool:
    return all(map(_blank, labels)) if isinstance(labels, list) else labels == IGNORED
