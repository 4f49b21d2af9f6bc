"""Files to rows: .jsonl, .json, .csv, .tsv and .parquet, without a cache, faults with their line; large ones outside of memory."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.data.tables import CHUNK_BYTES, CHUNK_ROWS, Store, empty, from_rows, from_table, joined
from tunekit.errors import InvalidError, UnreadableError
from tunekit.finding import error

if TYPE_CHECKING:
    import datasets

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


def read_file(path: Path, train_split: str = "train", store: Store | None = None) -> dict[str, datasets.Dataset]:
    """The rows of one file by split; most files hold one split, named `train_split`.

    Args:
        path: The file.
        train_split: The name of a file's only split.
        store: Where other files of the same data were put.

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
    splits = reader(path, train_split, store or Store())
    if not any(len(rows) for rows in splits.values()):
        raise InvalidError(empty(str(path), "the file holds no rows"))
    return splits


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


def _read_jsonl(path: Path, train_split: str, store: Store) -> dict[str, datasets.Dataset]:
    return {train_split: from_rows(_json_lines(path), str(path), store)}


def _read_json(path: Path, train_split: str, store: Store) -> dict[str, datasets.Dataset]:
    """A list of objects, columns of equal length, splits of either, or (as many do) JSON lines under this name."""
    with _opened(path) as text:
        content = text.read()
    try:
        value = json.loads(content)
    except json.JSONDecodeError as e:
        first = content.lstrip().partition("\n")[0]
        if e.msg == "Extra data" and _is_object(first):
            return _read_jsonl(path, train_split, store)
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
    if (
        isinstance(value, Mapping)
        and any(map(_is_rows, value.values()))
        and all(_is_rows(v) or v == [] for v in value.values())
    ):
        names = [train_split] if len(value) == 1 else list(value)
        return {str(n): from_rows(v, source) for n, v in zip(names, value.values(), strict=True) if v}
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


def _read_csv(path: Path, train_split: str, store: Store) -> dict[str, datasets.Dataset]:
    """Texts as they stand; a column in which every cell spells a number is made numbers when all of it was seen."""
    seen: dict[str, _Cells] = {}
    rows = from_rows(_csv_rows(path, seen), str(path), store)
    table = rows.data.table
    for at, (name, cells) in enumerate(seen.items()):
        if cells.build is not None:
            table = table.set_column(at, name, _numbers(table.column(name), cells.build))
    return {train_split: from_table(table, str(path))}


def _csv_rows(path: Path, seen: dict[str, _Cells]) -> Iterator[dict[str, str]]:
    """Row by row; what the cells of each column spell is noted in `seen`.

    A repeated name or a row of another width is an error with its line.
    """
    with _opened(path) as text, _long_fields():
        head = text.readline()
        text.seek(0)
        reader = csv.reader(text, delimiter="\t" if suffix_of(path) == ".tsv" else _separator(head), strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if len(set(header)) < len(header) or "" in header:
                why = f"the header {header} repeats a name or leaves one out"
                raise broken(path, why, "give every column its own name")
            seen.update({name: _Cells() for name in header})
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise broken(
                        path, f"line {reader.line_num} has {len(row)} fields, the header has {len(header)}",
                        "put fields that hold the separator or line ends between double quotes",
                    )  # fmt: skip
                for cells, cell in zip(seen.values(), row, strict=True):
                    cells.see(cell)
                yield dict(zip(header, row, strict=True))
        except csv.Error as e:
            raise broken(path, f"line {reader.line_num}: {e}") from None


def _separator(head: str) -> str:
    """The separator that cuts the header into most names; the comma where none does.

    Example:
        >>> _separator("text;label"), _separator('"text, as said";label'), _separator("text")
        (';', ';', ',')
    """
    return max(",;\t|", key=lambda mark: len(next(csv.reader([head], delimiter=mark), [])))


class _Cells:
    """Whether every cell of a column that is not empty spells a whole number, or a number.

    Example:
        >>> columns = [_Cells() for _ in range(3)]
        >>> for row in (("1", "1", "007"), ("2", "2.5", "1"), ("", "", "")):
        ...     for cells, cell in zip(columns, row):
        ...         cells.see(cell)
        >>> [cells.build for cells in columns]
        [<class 'int'>, <class 'float'>, None]
    """

    __slots__ = ("_filled", "_left")

    def __init__(self) -> None:
        self._filled = False
        self._left: list[tuple[re.Pattern[str], type[int] | type[float]]] = [(_WHOLE, int), (_NUMBER, float)]

    def see(self, cell: str) -> None:
        """One cell."""
        if cell:
            self._filled = True
            while self._left and not self._left[0][0].fullmatch(cell):
                del self._left[0]

    @property
    def build(self) -> type[int] | type[float] | None:
        """What makes the values of the cells; None: they stay texts."""
        return self._left[0][1] if self._filled and self._left else None


def _numbers(column: Any, build: type[int] | type[float]) -> Any:
    """The column as numbers, an empty cell as None."""
    import pyarrow as pa

    kind = pa.int64() if build is int else pa.float64()
    parts = ([build(c) if c else None for c in part.to_pylist()] for part in column.chunks)
    return pa.chunked_array([pa.array(part, kind) for part in parts], kind)


def _read_parquet(path: Path, train_split: str, store: Store) -> dict[str, datasets.Dataset]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            rows = min(CHUNK_ROWS, max(1, CHUNK_BYTES * file.metadata.num_rows // max(1, size)))
            parts = [store.put(pa.Table.from_batches([batch])) for batch in file.iter_batches(rows)]
            table = joined(parts, str(path)) if parts else file.schema_arrow.empty_table()
    except (pa.ArrowException, OSError) as e:
        raise broken(path, f"not a Parquet file: {e}") from None
    return {train_split: from_table(table, str(path))}


READERS: Mapping[str, Callable[[Path, str, Store], dict[str, Any]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
