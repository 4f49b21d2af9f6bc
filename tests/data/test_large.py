"""Data larger than memory is read and described in a memory that does not grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FACTS = """
import json, resource, sys
import pyarrow as pa, pyarrow.parquet as pq
from tunekit.data import tables
from tunekit.data.columns import infer_task, resolve
from tunekit.data.facts import data_facts
from tunekit.data.read import read

tables.MOST_BYTES = 2_000_000
rows = read(sys.argv[1]).train
task = infer_task(rows, None, ("causal-lm", "sequence-classification"))
from tunekit.data.read import Rows
facts, _ = data_facts(Rows(train=rows), task, resolve(rows, None, task))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([peak, facts.num_examples, facts.num_duplicates, max(facts.lengths)]))
"""
BLOCK = 1_000
"""Rows that are made of one text at a time."""


def write(path: Path, size: int) -> int:
    """Rows of about a thousand characters, every tenth of them twice; their number."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    count = size // 1_000
    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    with open(path, "wb") as file:
        parquet = pq.ParquetWriter(file, schema) if path.suffix == ".parquet" else None
        if path.suffix == ".csv":
            file.write(b"prompt,completion\n")
        for start in range(0, count, BLOCK):
            numbers = [i - (i % 10 == 9) for i in range(start, min(count, start + BLOCK))]
            rows = [{"prompt": f"say {i:09} " + "word " * 80, "completion": f"{i} " + "more " * 110} for i in numbers]
            if parquet is not None:
                parquet.write_table(pa.Table.from_pylist(rows, schema))
            elif path.suffix == ".csv":
                file.write("".join(f"{r['prompt']},{r['completion']}\n" for r in rows).encode())
            else:
                file.write("".join(json.dumps(r) + "\n" for r in rows).encode())
        if parquet is not None:
            parquet.close()
    return count


def peak(path: Path, size: int) -> int:
    """The most bytes that a process of its own held while it read a file of so many and found out its facts."""
    import json

    count = write(path, size)
    made = subprocess.run([sys.executable, "-c", FACTS, str(path)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    most, rows, repeated, longest = json.loads(made.stdout)
    assert (rows, repeated) == (count, count // 10)
    assert longest > 200
    return int(most)


@pytest.mark.parametrize(
    "kind", ["jsonl", pytest.param("csv", marks=pytest.mark.slow), pytest.param("parquet", marks=pytest.mark.slow)]
)
def test_a_file_several_times_as_large_takes_no_more_memory(kind: str, tmp_path: Path) -> None:
    small, large = peak(tmp_path / f"small.{kind}", 4_000_000), peak(tmp_path / f"large.{kind}", 30_000_000)
    assert large - small < 15_000_000, f"{small / 1e6:.0f} MB for 4 MB of rows, {large / 1e6:.0f} MB for 30 MB"
