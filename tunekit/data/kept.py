"""Kept rows: tokenised once for all runs that would tokenise the same rows alike, in the user's cache folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.finding import Finding

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

WORTH_BYTES = 2**20
"""Rows smaller than this are tokenised in a moment; they are not kept."""
MOST_BYTES = 10 * 2**30
"""What is kept in all; what was not used for longest goes first."""
_ROWS_AT_ONCE = 1_000
_CHANGING = ("strftime_now", "now(")
"""What makes a chat template write something else tomorrow."""


def cache_folder() -> Path | None:
    """Where tokenised rows are kept: `TUNEKIT_CACHE`, or `tunekit` in the user's cache folder; None where that is `off`."""
    named = os.environ.get("TUNEKIT_CACHE")
    if named is not None:
        return None if named.strip().lower() in ("", "off", "0") else Path(named).expanduser() / "rows"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tunekit" / "rows"


def key(
    dataset: datasets.Dataset, used: Sequence[str], tokenizer: PreTrainedTokenizerBase, **settings: Any
) -> str | None:
    """A digest of all that decides what the encoded rows are: every value in use, the tokenizer, the settings, the code.

    None where they are not worth keeping, or where it cannot be told: a tokenizer in Python, a template with a date in it.

    Args:
        dataset: The rows.
        used: Their columns in use.
        tokenizer: The model's.
        **settings: The encoder's, as plain values.
    """
    if dataset.data.nbytes < WORTH_BYTES or not tokenizer.is_fast or cache_folder() is None:
        return None
    template = json.dumps(tokenizer.chat_template or "", default=str)
    if any(word in template for word in _CHANGING):
        return None
    digest = hashlib.sha256(json.dumps([settings, template, _versions()], sort_keys=True, default=str).encode())
    digest.update(_tokenizer(tokenizer))
    digest.update(_code())
    _add_rows(digest, dataset.with_format(None).select_columns(list(used)))
    return digest.hexdigest()


def kept(
    name: str | None, make: Callable[[], tuple[datasets.Dataset, tuple[Finding, ...]]]
) -> tuple[datasets.Dataset, tuple[Finding, ...]]:
    """The rows kept under a name, or those that `make` gives, kept from now on."""
    folder = cache_folder() if name else None
    if folder is None or name is None:
        return make()
    found = _read(folder / name)
    if found is not None:
        return found
    made = make()
    try:
        _write(folder, name, *made)
        _clear(folder, name)
    except OSError:
        pass  # a full or read-only disk costs the next run some time, and this one nothing
    return made


def _read(place: Path) -> tuple[datasets.Dataset, tuple[Finding, ...]] | None:
    import datasets

    try:
        findings = tuple(Finding(**f) for f in json.loads((place / "findings.json").read_text("utf-8")))
        rows = datasets.load_from_disk(str(place / "rows"))
        os.utime(place)
    except Exception:  # not there, torn or of another version: made again
        return None
    return rows, findings


def _write(folder: Path, name: str, rows: datasets.Dataset, findings: tuple[Finding, ...]) -> None:
    """Written aside and renamed: another process sees all of it or nothing."""
    from tunekit.data.quiet import no_bars

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    try:
        with no_bars():
            rows.save_to_disk(str(aside / "rows"))
        (aside / "findings.json").write_text(json.dumps([dataclasses.asdict(f) for f in findings]), "utf-8")
        if (folder / name).exists():
            shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(aside, folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _clear(folder: Path, name: str) -> None:
    """Removes what was not used for longest where there is too much."""
    places = sorted((p for p in folder.iterdir() if p.is_dir() and p.name != name), key=lambda p: p.stat().st_mtime)
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in [*places, folder / name]}
    total = sum(sizes.values())
    for place in places:
        if total <= MOST_BYTES:
            return
        shutil.rmtree(place, ignore_errors=True)
        total -= sizes[place]


def _versions() -> list[str]:
    from importlib.metadata import version

    return [version(package) for package in ("transformers", "tokenizers", "datasets")]


def _code() -> bytes:
    """A digest of the modules that encode."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def _tokenizer(tokenizer: Any) -> bytes:
    """All that decides how a tokenizer cuts a text; where it lies and what it did last do not."""
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):
        inner.pop(state, None)
    given = {k: v for k, v in tokenizer.init_kwargs.items() if "file" not in k and k != "name_or_path"}
    about = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side, given]  # fmt: skip
    return json.dumps([inner, about], sort_keys=True, default=str).encode()


def _add_rows(digest: Any, dataset: datasets.Dataset) -> None:
    import pyarrow as pa

    digest.update(f"{len(dataset)} {dataset.features}".encode())

    class Sink:
        closed = False

        def write(self, data: Any) -> int:
            digest.update(data)
            return len(data)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    for part in dataset.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        table = part.replace_schema_metadata(None).combine_chunks()
        with pa.ipc.new_stream(pa.PythonFile(Sink(), mode="w"), table.schema) as stream:
            stream.write_table(table)
