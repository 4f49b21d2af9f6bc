"""Files to rows: .jsonl, .json, .csv, .tsv and .parquet, without a cache, faults with their line; large ones outside of memory."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import re
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import InvalidError, UnreadableError
from tunekit.finding import Finding, error

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

CHUNK_ROWS = 20_000
"""Rows that are Python objects at the same time."""

MOST_BYTES = 256 * 2**20
"""Of rows that are held in memory; what is over is kept in temporary files that nobody else sees and that end with the rows."""

_MOST_RATIO, _FREE_BYTES = 200, 16_000_000
"""Text is zipped to a fifth or a twentieth; one row a thousand times over, to a hundredth."""
_CSV_LIMIT = threading.Lock()
_WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def suffix_of(path: Path) -> str:
    """The format's suffix in lower case, `.gz` left out.

    Example:
        >>> suffix_of(Path("train.jsonl.gz"))
        '.jsonl'
    """
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_file(path: Path, train_split: str = "train") -> dict[str, datasets.Dataset]:
    """The rows of one file by split; most files hold one split, named `train_split`.

    Raises:
        UnreadableError: `data-unreadable`, with the line where there is one; `data-encoding`; `data-format`.
        InvalidError: `data-empty`.
    """
    reader = READERS.get(suffix_of(path))
    if reader is None:
        plain = suffix_of(path) in (".txt", ".text", ".md")
        raise UnreadableError(
            error(
                "data-format", f"data file {path}",
                "plain text does not say where a row ends and what is learnt of it" if plain
                else f"no reader for {suffix_of(path) or 'a file without a suffix'}",
                'write each row as a line `{"text": "..."}` of a .jsonl' if plain
                else f"use one of {', '.join(READERS)} (the text formats also as .gz), or pass a `datasets.Dataset`",
            )
        )  # fmt: skip
    if path.stat().st_size == 0:
        raise InvalidError(empty(str(path), "the file has no content"))
    splits = reader(path, train_split)
    if not any(len(rows) for rows in splits.values()):
        raise InvalidError(empty(str(path), "the file holds no rows"))
    return splits


def empty(what: str, why: str) -> Finding:
    """`data-empty`."""
    return error("data-empty", f"data {what}", why, "pass data with at least one row")


def broken(path: Path, why: str, fix: str = "mend the file, or pass rows as a list of dicts") -> UnreadableError:
    """`data-unreadable` as an error to raise."""
    return UnreadableError(error("data-unreadable", f"data file {path}", " ".join(why.split())[:300], fix))


# ---------------------------------------------------------------------------------------------------- text and lines
class _Unzipped(gzip.GzipFile):
    """A zipped file that is not larger, unzipped, than text can be: a few kilobytes of zeros may stand for gigabytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._path, self._given, self._most = path, 0, _MOST_RATIO * path.stat().st_size + _FREE_BYTES

    def read1(self, size: int = -1) -> bytes:
        """What `TextIOWrapper` reads by."""
        data = super().read1(size)
        self._given += len(data)
        if self._given > self._most:
            raise broken(
                self._path, f"unzipped it is more than {_MOST_RATIO} times as large", "unzip it, and see what it holds"
            )
        return data


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOWrapper]:
    """The file as text, UTF-8 or UTF-16 with its mark, unzipped where it is zipped; what goes wrong is one clear error."""
    raw: Any = _Unzipped(path) if path.name.lower().endswith(".gz") else open(path, "rb")  # noqa: SIM115
    with raw, io.TextIOWrapper(raw, encoding=_encoding(raw, path), newline="") as text:
        try:
            yield text
        except UnicodeDecodeError:
            raise _no_utf8(path) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as e:
            raise broken(path, f"it cannot be unzipped: {e}") from None


def _encoding(raw: Any, path: Path) -> str:
    """UTF-16 where its mark stands first, otherwise UTF-8; zeros at the start are UTF-16 without a mark, which is refused."""
    try:
        start = raw.peek(4)[:4]
    except (gzip.BadGzipFile, EOFError, zlib.error):  # said where the text is read
        return "utf-8-sig"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in start:
        raise _no_utf8(path)
    return "utf-8-sig"


def _no_utf8(path: Path) -> UnreadableError:
    fix = f"convert it: `iconv -f LATIN1 -t UTF-8 {path.name}` (or `-f UTF-16LE`)"
    return UnreadableError(
        error("data-encoding", f"data file {path}", "it is neither UTF-8 nor UTF-16 with its mark", fix)
    )


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as e:
                raise broken(path, f"line {number} is not JSON: {e.msg} at character {e.pos + 1}") from None
            except (ValueError, RecursionError):
                raise broken(path, f"line {number} has a number too long or is nested too deeply") from None
            if not isinstance(row, dict):
                raise broken(path, f"line {number} is a JSON {_kind(row)}, and a row is an object") from None
            yield row


def _read_jsonl(path: Path, train_split: str) -> dict[str, datasets.Dataset]:
    return {train_split: from_rows(_json_lines(path), str(path))}


def _read_json(path: Path, train_split: str) -> dict[str, datasets.Dataset]:
    """A list of objects, columns of equal length, splits of either, or (as many do) JSON lines under this name."""
    with _opened(path) as text:
        content = text.read()
    try:
        value = json.loads(content)
    except json.JSONDecodeError as e:
        first = content.lstrip().partition("\n")[0]
        if e.msg == "Extra data" and _is_object(first):
            return _read_jsonl(path, train_split)
        raise broken(path, f"line {e.lineno} is not JSON: {e.msg}") from None
    except (ValueError, RecursionError):
        raise broken(path, "the JSON has a number too long or is nested too deeply") from None
    return from_json(value, str(path), train_split)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def from_json(value: Any, source: str, train_split: str = "train") -> dict[str, datasets.Dataset]:
    """Rows, columns or splits that are plain Python values, by split."""
    if isinstance(value, list):
        return {train_split: from_rows(value, source)}
    if isinstance(value, Mapping) and value and all(_is_rows(v) for v in value.values()):
        names = [train_split] if len(value) == 1 else list(value)
        return {str(n): from_rows(v, source) for n, v in zip(names, value.values(), strict=True)}
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        lengths = {str(k): len(v) for k, v in value.items()}
        if len(set(lengths.values())) > 1:
            raise UnreadableError(
                error(
                    "data-unreadable", f"data {source}", f"columns of different lengths: {lengths}", "make them equal"
                )
            )
        names = list(value)
        return {
            train_split: from_rows(
                (dict(zip(names, r, strict=True)) for r in zip(*value.values(), strict=True)), source
            )
        }
    raise UnreadableError(
        error("data-unreadable", f"data {source}", f"a JSON {_kind(value)} that is no list of rows", 'write `[{"text": ...}, ...]`, or one row a line as .jsonl')
    )  # fmt: skip


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


# ---------------------------------------------------------------------------------------------------- separated values
@contextmanager
def _long_fields() -> Iterator[None]:
    """Fields of any length; the limit of the csv module is global, so it is put back."""
    with _CSV_LIMIT:
        before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _read_csv(path: Path, train_split: str) -> dict[str, datasets.Dataset]:
    with _opened(path) as text, _long_fields():
        head = text.readline()
        text.seek(0)
        delimiter = "\t" if suffix_of(path) == ".tsv" else next((d for d in ",;\t|" if d in head), ",")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader)]
            columns = _columns(path, header, reader)
        except csv.Error as e:
            raise broken(path, f"line {reader.line_num}: {e}") from None
    values = {name: _typed(column) for name, column in zip(header, columns, strict=True)}
    return from_json(values, str(path), train_split)


def _columns(path: Path, header: list[str], reader: Any) -> list[list[str]]:
    """The cells by column; a repeated name or a row of another width is an error with its line."""
    if len(set(header)) < len(header) or "" in header:
        raise broken(path, f"the header {header} repeats a name or leaves one out", "give every column its own name")
    columns: list[list[str]] = [[] for _ in header]
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise broken(
                path, f"line {reader.line_num} has {len(row)} fields, the header has {len(header)}",
                "put fields that hold the separator or line ends between double quotes",
            )  # fmt: skip
        for column, cell in zip(columns, row, strict=True):
            column.append(cell)
    return columns


def _typed(cells: list[str]) -> list[Any]:
    """Whole numbers or numbers where every cell spells one (empty: None); otherwise the texts as they are.

    Example:
        >>> _typed(["1", "2"]), _typed(["1", "2.5", ""]), _typed(["007", "1"])
        ([1, 2], [1.0, 2.5, None], ['007', '1'])
    """
    filled = [c for c in cells if c]
    for pattern, build in ((_WHOLE, int), (_NUMBER, float)):
        if filled and all(pattern.fullmatch(c) for c in filled):
            return [build(c) if c else None for c in cells]
    return cells


def _read_parquet(path: Path, train_split: str) -> dict[str, datasets.Dataset]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as e:
        raise broken(path, f"not a Parquet file: {e}") from None
    return {train_split: from_table(table, str(path))}


READERS: Mapping[str, Callable[[Path, str], dict[str, Any]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


# ------------------------------------------------------------------------------------------------------- rows to Arrow
def from_rows(rows: Iterable[Mapping[str, Any]], source: str) -> datasets.Dataset:
    """A Dataset in memory; a column that only some rows have is None in the others.

    Raises:
        UnreadableError: `data-mixed`: a column whose values have no type in common.
        InvalidError: `data-empty`.
    """
    tables, number, held = [], 0, 0
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_ROWS)):
        table = _table(chunk, source, number)
        held += table.nbytes
        tables.append(table if held <= MOST_BYTES else _on_disk(table))
        number += len(chunk)
    if not tables or not tables[0].num_columns:
        raise InvalidError(empty(source, "there are no rows" if not tables else "the rows have no columns"))
    return from_table(_joined(tables, source), source)


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


def _on_disk(table: pa.Table) -> pa.Table:
    """The same table out of a file that is mapped into memory as it is read, and is gone when nobody holds the table."""
    import pyarrow as pa

    handle, name = tempfile.mkstemp(prefix="tunekit-rows-", suffix=".arrow")
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        mapped: pa.Table = pa.ipc.open_file(pa.memory_map(name)).read_all()
    finally:
        os.unlink(name)
    return mapped


def _mixed(name: str, source: str, values: list[Any], first: int, reason: str) -> Finding:
    kinds: dict[str, int] = {}
    for number, value in enumerate(values, start=first):
        if value is not None:
            kinds.setdefault(type(value).__name__, number)
    seen = ", ".join(f"{kind} (first in row {number})" for kind, number in kinds.items())
    why = f"its values are {seen}" if len(kinds) > 1 else " ".join(reason.split())[:200]
    return error("data-mixed", f"column `{name}` of data {source}", why, "give every value of a column the same type")


def _joined(tables: list[pa.Table], source: str) -> pa.Table:
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

    try:
        return datasets.Dataset(table)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as e:
        raise UnreadableError(
            error("data-unreadable", f"data {source}", " ".join(str(e).split())[:300], "pass a `datasets.Dataset`")
        ) from None
