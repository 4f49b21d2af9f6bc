"""Read: from a Dataset, a list of dicts, a file, a folder or a hub id to training and evaluation rows."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.data.files import READERS, from_json, read_file, suffix_of
from tunekit.data.quiet import no_bars
from tunekit.data.tables import Store, empty, from_rows
from tunekit.errors import InvalidError, MissingError, UnreadableError
from tunekit.finding import error, nearest

if TYPE_CHECKING:
    import datasets

EVAL_SPLITS = ("validation", "valid", "dev", "eval", "test")
"""Splits to evaluate on where none is named, the first that exists."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_BINARY = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows to train on, rows to evaluate on, and where they came from."""

    train: datasets.Dataset
    eval: datasets.Dataset | None = None
    source: str | None = None
    """Path or hub id, where there is one."""


def read(
    source: Any,
    *,
    name: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    eval_split: str | None = None,
    eval_path: str | None = None,
    eval_share: float = 0.0,
    seed: int = 42,
    max_rows: int | None = None,
) -> Rows:
    """The rows behind whatever a user calls their data. What was passed is never changed.

    Args:
        source: A `datasets.Dataset` or `DatasetDict`, a list of dicts, a .jsonl, .json, .csv, .tsv or .parquet file
            (the text formats also as .gz), a folder with `train.*` and perhaps `validation.*` (or of .parquet
            parts alone, or one that `save_to_disk` wrote), or a hub id.
        name: The hub dataset's configuration.
        revision: The hub dataset's revision.
        train_split: The split to train on.
        eval_split: The split to evaluate on; None: the first of `EVAL_SPLITS` that exists, if any.
        eval_path: A file of its own to evaluate on.
        eval_share: Share of the training rows (0 to 1) held out where there is no split to evaluate on.
        seed: Seed of the two draws, `eval_share` and `max_rows`.
        max_rows: Keep at most this many training rows, drawn at random, in their order.

    Raises:
        MissingError: `data-missing`, `data-split`, `data-unreachable`.
        UnreadableError: `data-unreadable`, `data-encoding`, `data-format`, `data-mixed`.
        InvalidError: `data-empty`, `data-type`.

    Example:
        >>> rows = read([{"text": "good", "label": 1}, {"text": "bad", "label": 0}], eval_share=0.5)
        >>> len(rows.train), len(rows.eval)
        (1, 1)
    """
    splits, where = _splits(source, name, revision, train_split)
    train = _split(splits, train_split, where)
    held_out = _eval(splits, train_split, eval_split, eval_path, where)
    if held_out is None and eval_share > 0:
        train, held_out = _hold_out(train, eval_share, seed)
    if max_rows is not None and len(train) > max_rows:
        train = _take(train, sorted(random.Random(seed).sample(range(len(train)), max_rows)))
    return Rows(train=train, eval=held_out, source=where)


def _splits(source: Any, name: str | None, revision: str | None, train_split: str) -> tuple[dict[str, Any], str | None]:
    """Every split of the source, and its path or hub id."""
    import datasets

    if isinstance(source, datasets.Dataset):
        return {train_split: source}, None
    if isinstance(source, datasets.DatasetDict):
        return {str(k): v for k, v in source.items()}, None
    if isinstance(source, str | Path):
        return _from_name(source, name, revision, train_split)
    if isinstance(source, list | tuple):
        return {train_split: from_rows(source, "passed as a list")}, None
    if isinstance(source, Mapping):
        if source and all(isinstance(v, datasets.Dataset) for v in source.values()):
            return {str(k): v for k, v in source.items()}, None
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in source.items()}
        return from_json(plain, "passed as a dict", train_split), None
    streamed = isinstance(source, datasets.IterableDataset | datasets.IterableDatasetDict)
    raise InvalidError(
        error(
            "data-type", f"data that is a `{type(source).__name__}`",
            "a stream has no length to plan with" if streamed else "not something that rows are read from",
            "load it without `streaming=True`" if streamed else "pass a `datasets.Dataset`, a list of dicts, a path or a hub id",
        )
    )  # fmt: skip


def _from_name(
    source: str | Path, name: str | None, revision: str | None, train_split: str
) -> tuple[dict[str, Any], str]:
    path = Path(source).expanduser()
    if path.is_dir() and str(source):
        return _read_folder(path, train_split), str(source)
    if path.is_file():
        return read_file(path, train_split), str(source)
    if isinstance(source, Path) or looks_like_path(source) or _names_a_format(source):
        raise MissingError(
            error("data-missing", f"data {str(source)!r}", "no such file or folder", f"check the path; relative ones begin at {Path.cwd()}")
        )  # fmt: skip
    return _from_hub(source, name, revision), source


def looks_like_path(source: str) -> bool:
    """Whether a string that names no existing file was still meant as a path, and not as a hub id.

    Example:
        >>> looks_like_path("data/train.jsonl"), looks_like_path("./rows"), looks_like_path("stanfordnlp/sst2")
        (True, True, False)
    """
    return not _HUB_ID.fullmatch(source) or suffix_of(Path(source)) in (*READERS, *_BINARY, ".txt", ".arrow", ".zip")


def _names_a_format(source: str) -> bool:
    """Whether the datasets library takes a name for a format (`csv`, `text`): it would read all of the working folder."""
    from datasets import packaged_modules

    return source in getattr(packaged_modules, "_PACKAGED_DATASETS_MODULES", ())


# ------------------------------------------------------------------------------------------------------------- folders
def _read_folder(folder: Path, train_split: str) -> dict[str, Any]:
    """`train.*`, `validation.*` ... of a folder, shards `train-*` included, or what `save_to_disk` wrote there."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _load_from_disk(folder, train_split)
    found = {split: files for split in (train_split, *EVAL_SPLITS) if (files := _files_of(folder, split))}
    found = found or _unnamed_parts(folder, train_split)
    if train_split not in found:
        there = sorted(p.name for p in folder.iterdir())[:10]
        raise MissingError(
            error(
                "data-missing", f"folder {folder}", f"it has no `{train_split}` file; it holds {', '.join(there) or 'nothing'}",
                f"name a file `{train_split}.jsonl` (or {', '.join(list(READERS)[2:])}), or pass the file itself",
            )
        )  # fmt: skip
    store = Store()
    return {split: _read_shards(files, split, store) for split, files in found.items()}


def _files_of(folder: Path, split: str) -> list[Path]:
    """The file of a split, or its shards; two formats of the same split cannot both be meant."""
    files = [p for p in folder.iterdir() if p.is_file() and suffix_of(p) in READERS]
    whole = sorted(p for p in files if p.name.lower().removesuffix(".gz").removesuffix(suffix_of(p)) == split)
    if len(whole) > 1:
        raise InvalidError(
            error("data-ambiguous", f"folder {folder}", f"several files are its `{split}`: {', '.join(p.name for p in whole)}", "pass the one you mean, or remove the others")
        )  # fmt: skip
    return whole or sorted(p for p in files if re.match(rf"{re.escape(split)}-\d", p.name))


def _unnamed_parts(folder: Path, train_split: str) -> dict[str, list[Path]]:
    """The .parquet files of a folder whose names speak of no split, as tools that write in parts leave them: all to train on."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and suffix_of(p) == ".parquet")
    return {train_split: files} if files else {}


def _read_shards(files: list[Path], split: str, store: Store) -> datasets.Dataset:
    import datasets

    shards = [read_file(path, split, store)[split] for path in files if path.stat().st_size]
    if not shards:
        raise InvalidError(empty(str(files[0]), "the file has no content"))
    try:
        return shards[0] if len(shards) == 1 else datasets.concatenate_datasets(shards)
    except (ValueError, TypeError) as e:
        raise UnreadableError(
            error("data-mixed", f"the files {files[0].name} to {files[-1].name}", " ".join(str(e).split())[:300], "give every file the same columns")
        ) from None  # fmt: skip


def _load_from_disk(folder: Path, train_split: str) -> dict[str, Any]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as e:  # whatever the library trips over, the folder cannot be read
        raise UnreadableError(
            error(
                "data-unreadable",
                f"folder {folder}",
                " ".join(str(e).split())[:300],
                "save it again with `save_to_disk`",
            )
        ) from None
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {train_split: loaded}


# ----------------------------------------------------------------------------------------------------------- the hub
def _from_hub(source: str, name: str | None, revision: str | None) -> dict[str, Any]:
    """Every split of a hub dataset, from the library's own cache where it is there."""
    import datasets

    try:
        with no_bars():
            loaded = datasets.load_dataset(source, name, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as e:
        raise MissingError(
            error("data-missing", f"data {source!r}", f"no such file or folder, and no dataset of this id on the hub ({_short(e)})", "check the spelling, or log in if it is private")
        ) from None  # fmt: skip
    except (ConnectionError, TimeoutError) as e:
        raise MissingError(
            error("data-unreachable", f"data {source!r}", f"no such file or folder, and the hub cannot be reached ({_short(e)})", "check the connection, or pass a local file")
        ) from None  # fmt: skip
    except Exception as e:  # the library has no family of its own errors
        raise UnreadableError(
            error(
                "data-unreadable",
                f"hub dataset {source!r}",
                _short(e),
                "pass `name=` for its configuration, or a local file",
            )
        ) from None
    return {str(k): v for k, v in loaded.items()}


def _short(e: Exception) -> str:
    return " ".join(str(e).split())[:300] or type(e).__name__


# -------------------------------------------------------------------------------------------------------------- splits
def _split(splits: Mapping[str, Any], wanted: str, where: str | None) -> datasets.Dataset:
    """One split, with rows."""
    label = f"{where!r}" if where else "as passed"
    if wanted not in splits:
        raise MissingError(
            error("data-split", f"split {wanted!r} of the data {label}", f"the data has {', '.join(map(repr, splits))}", nearest(wanted, list(splits)))
        )  # fmt: skip
    rows = splits[wanted]
    if len(rows) == 0:
        raise InvalidError(empty(label, f"split {wanted!r} holds no rows"))
    return rows


def _eval(
    splits: Mapping[str, Any], train_split: str, eval_split: str | None, eval_path: str | None, where: str | None
) -> datasets.Dataset | None:
    """The rows to evaluate on, where any are named or found."""
    if eval_path is not None and eval_split is not None:
        raise InvalidError(
            error("data-eval-twice", f"`eval_path` {eval_path!r} and `eval_split` {eval_split!r}", "there is one set to evaluate on", "give one of them")
        )  # fmt: skip
    if eval_path is not None:
        others, its_name = _splits(eval_path, None, None, "eval")
        return _split(others, next((s for s in ("eval", *EVAL_SPLITS) if s in others), "eval"), its_name)
    if eval_split is not None:
        return _split(splits, eval_split, where)
    found = next((s for s in EVAL_SPLITS if s in splits and s != train_split and len(splits[s])), None)
    return splits[found] if found else None


def _hold_out(train: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and held-out rows, both in their order; at least one row stays on each side."""
    if len(train) < 2:
        raise InvalidError(
            error("data-eval-share", f"`eval_share` {share} of {len(train)} row", "both sides need a row", "pass more rows, or set `eval_share=0`")
        )  # fmt: skip
    size = min(max(1, round(share * len(train))), len(train) - 1)
    drawn = set(random.Random(seed).sample(range(len(train)), size))
    return _take(train, [i for i in range(len(train)) if i not in drawn]), _take(train, sorted(drawn))


def _take(rows: datasets.Dataset, indices: list[int]) -> datasets.Dataset:
    return rows.select(indices, keep_in_memory=True)
