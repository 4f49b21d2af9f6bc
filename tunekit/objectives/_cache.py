"""A teacher's answers on disk: written part by part, read through memory maps, tied to what they were made of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import MissingError, UnsupportedError, raise_all
from tunekit.files import write_json
from tunekit.finding import Finding, error

if TYPE_CHECKING:
    import datasets

FACTS = "teacher.json"
SCHEMA = 1
PART_BYTES = 64 * 2**20
"""About how much a part holds: what a broken run has to do again at most."""

_WORDS = {
    "content": "it holds something else",
    "rows": "other rows, or in another order",
    "teacher": "another teacher, or it was trained on since",
    "reading": "a teacher read in another dtype or quantisation",
    "tokenizer": "another tokenizer",
    "task": "another task",
    "temperature": "another `temperature`",
    "top_k": "another `top_k`",
    "writing": "texts written with other settings",
}
"""What a difference in a fact means, in print."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a cache was made of. Two caches with the same facts hold the same answers."""

    content: str
    """`logits`: all of them, for few classes; `top-k`: the largest log-probabilities over a vocabulary; `texts`."""
    rows: str
    teacher: str
    reading: str
    tokenizer: str
    task: str
    temperature: float | None = None
    top_k: int | None = None
    writing: str | None = None

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """In words, how a cache with the facts `other` is another one."""
        return [_WORDS[name] for name, value in asdict(self).items() if other.get(name) != value]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """The folder of a cache.

    `teacher.json` says what it was made of, how many rows there are and how many lie in a part; `part-00000.arrow` and so
    on hold the answers in the order of the rows. A part is written aside and renamed.
    """

    folder: Path

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:05d}.arrow"

    def told(self) -> dict[str, Any] | None:
        """What `teacher.json` says; None where there is none."""
        try:
            read = json.loads((self.folder / FACTS).read_text("utf-8"))
            return read if isinstance(read, dict) and read.get("schema") == SCHEMA else {}
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}

    def check(self, facts: Facts, fix: str) -> dict[str, Any]:
        """What `teacher.json` says, if the cache is whole and made of this.

        Raises:
            MissingError: `distillation-cache-missing`, `distillation-cache-unfinished`.
            UnsupportedError: `distillation-cache-stale`.
        """
        told = self.told()
        if told is None:
            raise MissingError(error("distillation-cache-missing", f"cache {str(self.folder)!r}", "it has not been filled", fix))  # fmt: skip
        raise_all(self.stale(facts, told), UnsupportedError)
        missing = [i for i in range(told["parts"]) if not self.part(i).is_file()]
        if missing:
            seen = f"cache {str(self.folder)!r}"
            why = f"{len(missing)} of its {told['parts']} parts are missing"
            raise MissingError(error("distillation-cache-unfinished", seen, why, f"{fix}; it goes on where it stopped"))
        return told

    def stale(self, facts: Facts, told: Mapping[str, Any]) -> list[Finding]:
        """The refusal, where `teacher.json` says that the cache was made of something else."""
        differ = facts.differences(told.get("facts", {}))
        fix = "name another folder as `cache`, or fill this one again (`tunekit teach --overwrite plan.yaml`)"
        seen = f"cache {str(self.folder)!r}"
        return [error("distillation-cache-stale", seen, f"it was made of something else: {', '.join(differ)}", fix)] if differ else []  # fmt: skip

    def fill(
        self,
        facts: Facts,
        extra: Mapping[str, Any],
        rows: int,
        size_bytes: int,
        answer: Callable[[int, int], dict[str, list[Any]]],
        progress: Callable[[int, int], None],
        overwrite: bool,
    ) -> None:
        """Writes the parts that are not there yet.

        Args:
            facts: What it is made of.
            extra: What else `teacher.json` is to say.
            rows: How many there are.
            size_bytes: About how much they will take.
            answer: From the first row of a part and the one after its last to columns.
            progress: Told the rows that are done and all.
            overwrite: Whether one that was made of something else is replaced.

        Raises:
            UnsupportedError: `distillation-cache-stale`.
        """
        told = self.told()
        if told is not None and (differ := self.stale(facts, told)):
            raise_all([] if overwrite else differ, UnsupportedError)
            for path in self.folder.glob("part-*.arrow*"):
                path.unlink()
            told = None
        if told is None:
            per_part = min(max(1, rows), max(1, math.ceil(PART_BYTES * rows / max(size_bytes, 1))))
            told = {
                "kind": "tunekit-teacher-cache", "schema": SCHEMA, "facts": asdict(facts), **extra, "rows": rows, "rows_per_part": per_part,
                "parts": math.ceil(rows / per_part),
            }  # fmt: skip
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / FACTS, told)
        for number in range(told["parts"]):
            start = number * told["rows_per_part"]
            end = min(rows, start + told["rows_per_part"])
            if not self.part(number).is_file():
                self._write(number, answer(start, end))
            progress(end, rows)

    def _write(self, number: int, columns: dict[str, list[Any]]) -> None:
        import datasets
        from datasets.arrow_writer import ArrowWriter

        aside = self.part(number).with_suffix(".arrow.writing")
        made = datasets.Dataset.from_dict(columns)
        with ArrowWriter(path=str(aside), features=made.features) as writer:
            writer.write_table(made.data.table)
            writer.finalize()
        os.replace(aside, self.part(number))

    def read(self, told: Mapping[str, Any]) -> datasets.Dataset:
        """Every part, memory-mapped."""
        import datasets

        return datasets.concatenate_datasets(
            [datasets.Dataset.from_file(str(self.part(i))) for i in range(told["parts"])]
        )
