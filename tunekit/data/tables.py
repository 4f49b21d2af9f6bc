"""Tables: rows as a Dataset over Arrow, in memory where they are few and outside of it where they are many."""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tunekit.errors import InvalidError, UnreadableError
from tunekit.finding import Finding, error

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

CHUNK_ROWS = 20_000
"""Rows that are Python objects at the same time, at most."""
CHUNK_BYTES = 64 * 2**20
"""What they take as Arrow, about: of long rows fewer are held."""
MOST_BYTES = 256 * 2**20
"""Of rows that are held in memory; what is over is kept in temporary files that nobody else sees and that end with the rows."""

_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


class Store:
    """Where the tables of one data set are put: in memory until `MOST_BYTES` are full, then in files mapped as they are read."""

    def __init__(self) -> None:
        self.held = 0

    def put(self, table: pa.Table) -> pa.Table:
        """The same table, wherever it lies now."""
        self.held += table.nbytes
        return table if self.held <= MOST_BYTES else _on_disk(table)


def _on_disk(table: pa.Table) -> pa.Table:
    """The same table out of a file that is mapped into memory as it is read, and is gone when nobody holds the table."""
    import pyarrow as pa

    handle, name = tempfile.mkstemp(prefix="tunekit-rows-", suffix=".arrow")
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        with open(name, "rb") as written:
            mapped = mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ)
    finally:
        os.unlink(name)
    _mapped.add(mapped)
    read: pa.Table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()
    return read


def release() -> None:
    """Gives pages of mapped rows back once they are read; they stay in the system's own cache, and are there when read again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in list(_mapped):
            mapped.madvise(mmap.MADV_DONTNEED)


def from_rows(rows: Iterable[Mapping[str, Any]], source: str, store: Store | None = None) -> datasets.Dataset:
    """A Dataset of plain rows; a column that only some rows have is None in the others.

    Args:
        rows: The rows, taken one by one.
        source: What they are called in an error.
        store: Where other rows of the same data were put.

    Raises:
        UnreadableError: `data-mixed`: a column whose values have no type in common.
        InvalidError: `data-empty`.
    """
    store = store or Store()
    tables: list[pa.Table] = []
    number = 0
    for chunk, table in _chunks(rows, source):
        tables.append(store.put(table))
        number += chunk
    if not tables or not tables[0].num_columns:
        raise InvalidError(empty(source, "there are no rows" if not tables else "the rows have no columns"))
    return from_table(joined(tables, source), source)


def _chunks(rows: Iterable[Mapping[str, Any]], source: str) -> Iterator[tuple[int, pa.Table]]:
    """Tables of so many rows as are held at once, told from the size of those before."""
    iterator, number, size, wanted = iter(rows), 0, 0, min(1_000, CHUNK_ROWS)
    while chunk := list(itertools.islice(iterator, wanted)):
        table = _table(chunk, source, number)
        number, size = number + len(chunk), size + table.nbytes
        wanted = min(CHUNK_ROWS, max(1, CHUNK_BYTES * number // max(1, size)))
        yield len(chunk), table


def empty(what: str, why: str) -> Finding:
    """`data-empty`."""
    return error("data-empty", f"data {what}", why, "pass data with at least one row")


def _table(rows: list[Mapping[str, Any]], source: str, first: int) -> pa.Table:
    import pyarrow as pa

    for number, row in enumerate(rows, start=first):
        if not isinstance(row, Mapping):
            raise InvalidError(
                error("data-type", f"row {number} of data {source} is a {type(row).__name__}", "a row is a dict", 'write `{"text": ..., "label": ...}`')
            )  # fmt: skip
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as e:
            raise UnreadableError(_mixed(name, source, values, first, str(e))) from None
    return pa.table(columns)


def _mixed(name: str, source: str, values: list[Any], first: int, reason: str) -> Finding:
    kinds: dict[str, int] = {}
    for number, value in enumerate(values, start=first):
        if value is not None:
            kinds.setdefault(type(value).__name__, number)
    seen = ", ".join(f"{kind} (first in row {number})" for kind, number in kinds.items())
    why = f"its values are {seen}" if len(kinds) > 1 else " ".join(reason.split())[:200]
    return error("data-mixed", f"column `{name}` of data {source}", why, "give every value of a column the same type")


def joined(tables: list[pa.Table], source: str) -> pa.Table:
    """One table over all; what has no type in common is refused.

    Raises:
        UnreadableError: `data-mixed`.
    """
    import pyarrow as pa

    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowException, TypeError) as e:
        raise UnreadableError(
            error(
                "data-mixed",
                f"data {source}",
                " ".join(str(e).split())[:300],
                "give every value of a column the same type",
            )
        ) from None


def from_table(table: pa.Table, source: str) -> datasets.Dataset:
    """A Dataset over an Arrow table, with its features where the table carries them."""
    import datasets
    import pyarrow as pa
    from datasets.fingerprint import generate_random_fingerprint

    try:
        # Without a name of its own it would be made of all the rows, pickled: several times their size.
        return datasets.Dataset(table, fingerprint=generate_random_fingerprint())
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as e:
        raise UnreadableError(
            error("data-unreadable", f"data {source}", " ".join(str(e).split())[:300], "pass a `datasets.Dataset`")
        ) from None
