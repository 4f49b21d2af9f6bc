"""What kind of value a column holds, told from its features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.tables import release

if TYPE_CHECKING:
    import datasets

_SAMPLE_ROWS = 2_000
_BATCH_ROWS = 10_000
_SCATTERED_ROWS = 100
"""Rows far from each other: around each of them the system maps a megabyte or so."""


def feature_kind(dataset: datasets.Dataset, column: str) -> str:
    """`text`, `int`, `float`, `bool`, a list of one of these (`texts`, ...), `messages`, `answers`, `choices`, `null` or `other`.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"a": ["x"], "b": [[1, 2]], "c": [[{"role": "user", "content": "hi"}]]})
        >>> [feature_kind(rows, c) for c in "abc"]
        ['text', 'ints', 'messages']
    """
    return _kind(dataset.features[column])


def _kind(feature: Any) -> str:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return "int"
    if isinstance(feature, datasets.Value):
        return _value_kind(feature.dtype)
    inner = _element(feature)
    if isinstance(inner, dict):
        return _struct_kind(inner)
    if inner is not None:
        return {"text": "texts", "int": "ints", "float": "floats", "bool": "ints", "null": "texts"}.get(
            _kind(inner), "other"
        )
    if isinstance(feature, dict):
        return _record_kind(feature)
    return "other"


def _element(feature: Any) -> Any:
    """The feature of a list's elements, or None where it is no list. A `Sequence` of a dict is a dict of lists."""
    if isinstance(feature, list):
        return feature[0]
    if type(feature).__name__ in ("List", "LargeList", "Sequence"):
        return feature.feature
    return None


def _value_kind(dtype: str) -> str:
    if dtype in ("string", "large_string", "string_view"):
        return "text"
    if dtype == "bool":
        return "bool"
    if dtype.startswith(("int", "uint")):
        return "int"
    if dtype.startswith(("float", "decimal")):
        return "float"
    return "null" if dtype == "null" else "other"


def _struct_kind(fields: dict[str, Any]) -> str:
    """A list of records: messages, or answers one record each."""
    if {"role", "content"} <= set(fields) or {"from", "value"} <= set(fields):
        return "messages"
    if {"text", "answer_start"} <= set(fields):
        return "answers"
    return "choices" if {"text", "label"} <= set(fields) else "other"


def _record_kind(fields: dict[str, Any]) -> str:
    """One record of lists: SQuAD's answers, ARC's choices."""
    if {"text", "answer_start"} <= set(fields):
        return "answers"
    return "choices" if {"text", "label"} <= set(fields) else "other"


def class_names(dataset: datasets.Dataset, column: str) -> tuple[str, ...] | None:
    """The names that a `ClassLabel` column, or a list of them, carries; otherwise None."""
    import datasets

    feature = dataset.features[column]
    inner = _element(feature)
    feature = inner if inner is not None else feature
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) and feature.names else None


def values(dataset: datasets.Dataset, column: str, limit: int | None = None) -> list[Any]:
    """A column as plain Python values, whatever format the user has set."""
    plain = dataset.select_columns([column]).with_format(None)
    return list(plain[: len(plain) if limit is None else limit][column])


def in_batches(
    dataset: datasets.Dataset, columns: Sequence[str], rows: Sequence[int] | None = None
) -> Iterator[dict[str, list[Any]]]:
    """Columns as plain Python values, some rows at a time, so that rows outside of memory stay there.

    Args:
        dataset: The rows.
        columns: Those to read.
        rows: Numbers of the rows to read; None: all.
    """
    plain = dataset.select_columns(list(columns)).with_format(None)
    size, each = (len(plain), _BATCH_ROWS) if rows is None else (len(rows), _SCATTERED_ROWS)
    for start in range(0, size, each):
        stop = min(size, start + each)
        read = plain[start:stop] if rows is None else plain[list(rows[start:stop])]
        yield {column: list(read[column]) for column in columns}
        release()


def shared(dataset: datasets.Dataset, column: str) -> list[Any]:
    """A column of labels as plain Python values, of which equal ones are one object: eight bytes a row where it is text."""
    known: dict[str, str] = {}
    return [
        known.setdefault(v, v) if isinstance(v, str) else v
        for batch in in_batches(dataset, [column])
        for v in batch[column]
    ]


def looks_like_classes(dataset: datasets.Dataset, column: str) -> bool:
    """Whether a column of texts repeats itself as class names do; numbers and lists always may be labels."""
    if feature_kind(dataset, column) != "text":
        return True
    sample = [v for v in values(dataset, column, _SAMPLE_ROWS) if v is not None]
    return len(sample) < 8 or len(set(sample)) <= len(sample) // 2
