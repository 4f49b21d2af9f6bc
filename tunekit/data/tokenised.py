"""Rows that come tokenised: whether they can be taken as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit.errors import InvalidError
from tunekit.finding import error

if TYPE_CHECKING:
    import datasets


def check_tokenised(rows: datasets.Dataset) -> None:
    """Refuses tokenised rows whose `input_ids` are not lists of whole numbers (of lists, for choices) in every row.

    Args:
        rows: With a column `input_ids`; left as they are.

    Raises:
        InvalidError: `rows-tokenised`.

    Example:
        >>> import datasets
        >>> check_tokenised(datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]]}))
    """
    import pyarrow as pa
    import pyarrow.types as kinds

    if "input_ids" not in rows.column_names or not len(rows):
        return
    table = rows.with_format("arrow").select_columns("input_ids")
    kind: pa.DataType = table[:1]["input_ids"].type
    inner, depth = kind, 0
    while kinds.is_list(inner) or kinds.is_large_list(inner) or kinds.is_fixed_size_list(inner):
        inner, depth = inner.value_type, depth + 1
    missing = sum(part["input_ids"].null_count for part in table.iter(batch_size=10_000))
    if kinds.is_integer(inner) and depth in (1, 2) and not missing:
        return
    seen = f"`input_ids` is null in {missing:,} of {len(rows):,} rows" if missing else f"`input_ids` of type {kind}"
    why = "rows with that column are taken as tokenised: a list of token ids in each"
    raise InvalidError(
        error("rows-tokenised", seen, why, "give every row its ids, or drop the column to have the text tokenised")
    )
