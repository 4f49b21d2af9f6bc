"""Rows are tokenised once: found again by what decides them, in any process, and never where something of it changed."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from tunekit.data import encode as encoding
from tunekit.data import kept
from tunekit.data.encode import encode
from tunekit.task import Task

TASK = Task.named("causal-lm")
COLUMNS = {"prompt": "question", "completion": "answer"}
VALUES = {
    "question": [f"what is {i} ?" for i in range(50)],
    "answer": [f"it is {i}" for i in range(50)],
    "note": ["x"] * 50,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "WORTH_BYTES", 1)
    return tmp_path / "cache" / "rows"


def rows(**changes: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({**VALUES, **changes})


def made(tokenizer: PreTrainedTokenizerBase, data: datasets.Dataset | None = None, **settings: Any) -> Any:
    return encode(data or rows(), TASK, tokenizer, **{"columns": COLUMNS, "max_length": 8, **settings})


def test_the_second_time_nothing_is_tokenised(minilm: PreTrainedTokenizerBase, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    first = made(minilm)
    assert first.findings, "some rows are cut, which has to be said again"
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(encoding, "encoder_of", lambda *a: pytest.fail("encoded again"))
    again = made(minilm, rows(note=["y"] * 50))
    assert again.dataset[:] == first.dataset[:]
    assert again.findings == first.findings
    assert again.dataset.features == first.dataset.features


def test_whatever_decides_a_row_is_part_of_its_name(minilm: PreTrainedTokenizerBase, bpe: PreTrainedTokenizerBase, folder: Path) -> None:  # fmt: skip
    longer, talking, other = copy.deepcopy(minilm), copy.deepcopy(minilm), copy.deepcopy(minilm)
    longer.add_tokens(["what"])
    talking.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    other.truncation_side = "left"
    changed = [*VALUES["answer"][:-1], "it is 5"]
    variants = [
        made(minilm), made(minilm, rows(answer=changed)), made(minilm, max_length=9), made(minilm, rows().select(range(49))),
        made(minilm, rows().select(range(49, -1, -1))), made(minilm, columns={"prompt": "answer", "completion": "question"}),
        made(minilm, template="Q: {question}"), made(longer), made(talking), made(other), made(bpe),
    ]  # fmt: skip
    assert len(list(folder.iterdir())) == len(variants)
    assert variants[1].dataset[49] != variants[0].dataset[49]


def test_the_same_rows_are_known_however_they_lie(
    minilm: PreTrainedTokenizerBase, folder: Path, tmp_path: Path
) -> None:
    made(minilm)
    data = rows()
    data.save_to_disk(str(tmp_path / "disk"))
    halves = datasets.concatenate_datasets([data.select(range(20)), data.select(range(20, 50))])
    for same in (datasets.load_from_disk(str(tmp_path / "disk")), halves, data.with_format("torch")):
        made(minilm, same)
    minilm("a text that leaves its settings behind", truncation=True, max_length=3, padding="max_length")
    made(minilm)
    assert len(list(folder.iterdir())) == 1


_PROCESS = """
import sys, datasets
from transformers import AutoTokenizer
from tunekit.data import kept, encode
from tunekit.task import Task
kept.WORTH_BYTES = 1
if sys.argv[2] == "found":
    encode.encoder_of = None
rows = datasets.Dataset.from_dict({"question": [f"what is {i} ?" for i in range(50)], "answer": [f"it is {i}" for i in range(50)]})
made = encode.encode(rows, Task.named("causal-lm"), AutoTokenizer.from_pretrained(sys.argv[1]), columns={"prompt": "question", "completion": "answer"}, max_length=8)
print(sum(map(sum, made.dataset["input_ids"])))
"""


def test_another_process_finds_them(minilm: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    minilm.save_pretrained(tmp_path / "tokenizer")
    said = []
    for seed, how in (("1", "made"), ("2", "found")):
        done = subprocess.run(
            [sys.executable, "-c", _PROCESS, str(tmp_path / "tokenizer"), how], capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout)
    assert said[0] == said[1]


def test_a_torn_entry_is_made_again(minilm: PreTrainedTokenizerBase, folder: Path) -> None:
    first = made(minilm)
    (entry,) = folder.iterdir()
    next(entry.glob("rows/*.arrow")).write_bytes(b"torn")
    assert made(minilm).dataset[:] == first.dataset[:]
    assert made(minilm).dataset[:] == first.dataset[:]
    assert [p.name for p in folder.iterdir()] == [entry.name]


def test_what_is_small_switched_off_or_changes_by_itself_is_not_kept(
    minilm: PreTrainedTokenizerBase, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = copy.deepcopy(minilm)
    dated.chat_template = (
        "{{ strftime_now('%d') }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    made(dated)
    monkeypatch.setenv("TUNEKIT_CACHE", "off")
    made(minilm)
    monkeypatch.setenv("TUNEKIT_CACHE", str(folder.parent))
    monkeypatch.setattr(kept, "WORTH_BYTES", 2**20)
    made(minilm)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_time_only(minilm: PreTrainedTokenizerBase, folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")
    assert len(made(minilm).dataset) == 50


def test_what_was_not_used_for_longest_goes_first(minilm: PreTrainedTokenizerBase, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    made(minilm, max_length=6)
    (oldest,) = folder.iterdir()
    os.utime(oldest, (1, 1))
    size = sum(f.stat().st_size for f in oldest.rglob("*") if f.is_file())
    monkeypatch.setattr(kept, "MOST_BYTES", int(2.5 * size))
    for length in (7, 8):
        made(minilm, max_length=length)
    assert len(list(folder.iterdir())) == 2
    assert not oldest.exists()
