"""What users call their data becomes rows, or one clear error."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunekit.data.read import looks_like_path, read
from tunekit.errors import InvalidError, MissingError, TunekitError, UnreadableError

ROWS = [{"text": 'göod, "film"', "label": 1}, {"text": "bad\nfilm", "label": 0}, {"text": "fine", "label": 1}]


def jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def write(folder: Path, name: str) -> Path:
    """The same three rows in the format that the name says."""
    path, table = folder / name, pa.Table.from_pylist(ROWS)
    csv = 'text{0}label\n"göod, ""film"""{0}1\n"bad\nfilm"{0}0\nfine{0}1\n'
    match path.name.partition(".")[2]:
        case "jsonl" | "ndjson":
            jsonl(path)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(jsonl(folder / "x.jsonl").read_bytes()))
            (folder / "x.jsonl").unlink()
        case "json":
            path.write_text(json.dumps(ROWS))
        case "csv":
            path.write_text(csv.format(","), "utf-8-sig")
        case "csv.gz":
            path.write_bytes(gzip.compress(csv.format(";").encode()))
        case "tsv":
            path.write_text(csv.format("\t"))
        case "parquet":
            pq.write_table(table, path)
    return path


FORMATS = ("a.jsonl", "a.ndjson", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz", "a.tsv", "a.parquet")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows_and_writes_nothing(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name)
    rows = read(path)
    assert rows.train.to_list() == ROWS
    assert rows.eval is None
    assert rows.source == str(path)
    assert rows.train.cache_files == []
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        tuple(ROWS),
        {"text": [r["text"] for r in ROWS], "label": [r["label"] for r in ROWS]},
        {"train": ROWS},
        datasets.Dataset.from_list(ROWS),
        datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
        {"train": datasets.Dataset.from_list(ROWS)},
    ],
    ids=["list", "tuple", "columns", "dict of lists", "Dataset", "DatasetDict", "dict of Datasets"],
)
def test_live_objects_give_the_same_rows_and_stay_as_they_are(source: Any) -> None:
    before = copy.deepcopy(source)
    assert read(source, eval_share=0.4).train.column_names == ["text", "label"]
    assert read(source).train.to_list() == ROWS
    if not isinstance(source, datasets.Dataset | datasets.DatasetDict) and not isinstance(next(iter(source)), str):
        assert source == before


def test_a_format_that_the_user_set_stays_on_his_dataset() -> None:
    mine = datasets.Dataset.from_list(ROWS).with_format("numpy")
    read(mine, eval_share=0.5, max_rows=1)
    assert mine.format["type"] == "numpy"
    assert len(mine) == 3


def test_a_column_that_only_later_rows_have_is_kept() -> None:
    assert read([{"text": "a"}, {"text": "b", "label": 1}]).train.to_list() == [
        {"text": "a", "label": None},
        {"text": "b", "label": 1},
    ]


def test_a_type_that_only_shows_after_many_rows_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.data.tables.CHUNK_ROWS", 2)
    rows = read([{"x": None}, {"x": 1}, {"x": 2.5}, {"x": None, "y": "z"}]).train
    assert rows["x"][:] == [None, 1.0, 2.5, None]
    assert rows["y"][:] == [None, None, None, "z"]


def test_a_folder_gives_its_splits_and_ignores_the_rest(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl.gz")
    jsonl(tmp_path / "dev.jsonl", ROWS[:2])
    jsonl(tmp_path / "test.jsonl", ROWS[:1])
    (tmp_path / "labels.json").write_text('["no", "yes"]')
    rows = read(str(tmp_path))
    assert (len(rows.train), len(rows.eval or [])) == (3, 2)
    assert len(read(tmp_path, eval_split="test").eval or []) == 1


def test_shards_of_a_split_are_joined_in_order(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"train-0000{i}-of-00003.parquet")
    assert read(tmp_path).train.to_list() == ROWS


def test_a_folder_that_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), validation=datasets.Dataset.from_list(ROWS[:1])
    ).save_to_disk(tmp_path / "both")
    rows = read(tmp_path / "both")
    assert (len(rows.train), len(rows.eval or [])) == (3, 1)


def test_class_names_survive_parquet(tmp_path: Path) -> None:
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").train.features["label"].names == ["no", "yes"]


def test_a_share_is_held_out_by_seed_without_overlap() -> None:
    source = [{"text": str(i)} for i in range(50)]
    one, same, other = (read(source, eval_share=0.2, seed=s) for s in (1, 1, 2))
    held, kept = one.eval["text"][:], one.train["text"][:]  # type: ignore[index]
    assert len(held) == 10
    assert sorted(held + kept, key=int) == [r["text"] for r in source]
    assert held == same.eval["text"][:] != other.eval["text"][:]  # type: ignore[index]


def test_a_share_leaves_a_given_split_alone(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl")
    jsonl(tmp_path / "valid.jsonl", ROWS[:1])
    rows = read(tmp_path, eval_share=0.5)
    assert (len(rows.train), len(rows.eval or [])) == (3, 1)


def test_an_evaluation_file_of_its_own_is_read(tmp_path: Path) -> None:
    held = jsonl(tmp_path / "held.jsonl", ROWS[:2])
    assert len(read(jsonl(tmp_path / "a.jsonl"), eval_path=str(held)).eval or []) == 2


def test_max_rows_draws_in_order() -> None:
    rows = read([{"text": str(i)} for i in range(100)], max_rows=10).train["text"][:]
    assert rows == sorted(rows, key=int)
    assert len(rows) == 10
    assert rows != [str(i) for i in range(10)]


BROKEN = {
    "json line": ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "data-unreadable", "line 2"),
    "line that is no object": ("a.jsonl", b'{"text": "a"}\n\n[1]\n', "data-unreadable", "line 3"),
    "json": ("a.json", b'[{"text": 1},\n x]', "data-unreadable", "line 2"),
    "json that is no rows": ("a.json", b'"hello"', "data-unreadable", "string"),
    "uneven columns": ("a.json", b'{"a": [1, 2], "b": [1]}', "data-unreadable", "different lengths"),
    "ragged csv": ("a.csv", b"text,label\na,1\nb,2,3\n", "data-unreadable", "line 3 has 3 fields"),
    "repeated header": ("a.csv", b"text,text\na,1\n", "data-unreadable", "repeats a name"),
    "open quote": ("a.csv", b'text,label\n"a,1\n', "data-unreadable", "line"),
    "latin-1": ("a.csv", "text,label\ngöod,1\n".encode("latin-1"), "data-encoding", "UTF-8"),
    "utf-16 without a mark": ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-le"), "data-encoding", "iconv"),
    "plain text": ("a.txt", b"one\ntwo\n", "data-format", ".jsonl"),
    "not gzip": ("a.jsonl.gz", b'{"text": "a"}\n', "data-unreadable", "unzipped"),
    "torn gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-12], "data-unreadable", "unzipped"),
    "parquet": ("a.parquet", b"PAR1 no", "data-unreadable", "Parquet"),
    "mixed types": ("a.jsonl", b'{"label": 1}\n{"label": "b"}\n', "data-mixed", "str (first in row 1)"),
    "pickle": ("a.pkl", b"\x80\x04K\x01.", "data-format", ".jsonl"),
    "no suffix": ("rows", b"text\n", "data-format", "without a suffix"),
    "nothing": ("a.jsonl", b"", "data-empty", "no content"),
    "blank lines": ("a.jsonl", b"\n\n", "data-empty", "no rows"),
    "header only": ("a.csv", b"text,label\n", "data-empty", "no rows"),
    "empty list": ("a.json", b"[]", "data-empty", "no rows"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_clear_error(case: str, tmp_path: Path) -> None:
    name, content, code, words = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TunekitError) as caught:
        read(str(path))
    assert caught.value.codes == (code,)
    assert words in str(caught.value)
    assert caught.value.findings[0].fix
    assert "Traceback" not in str(caught.value)


def test_rows_of_long_lines_and_odd_line_ends_are_read(tmp_path: Path) -> None:
    long = "x" * 300_000
    (tmp_path / "a.csv").write_bytes(f'text,label\r\n"{long}",1\r\n'.encode())
    assert read(tmp_path / "a.csv").train[0] == {"text": long, "label": 1}
    (tmp_path / "b.jsonl").write_bytes('{"text": "a\u2028b"}\r\n{"text": "c"}'.encode())
    assert read(tmp_path / "b.jsonl").train["text"][:] == ["a\u2028b", "c"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_a_file_with_its_mark_is_read_in_its_encoding(name: str, encoding: str, tmp_path: Path) -> None:
    text = (
        "text;label\nschön;1\nübel;0\n"
        if "csv" in name
        else '{"text": "schön", "label": 1}\n{"text": "übel", "label": 0}\n'
    )
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path / name).train.to_list() == [{"text": "schön", "label": 1}, {"text": "übel", "label": 0}]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le"])
def test_another_encoding_is_one_message_with_the_way_out(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text;label\nschön;1\nübel;0\n".encode(encoding))
    with pytest.raises(UnreadableError) as caught:
        read(tmp_path / "a.csv")
    assert caught.value.codes == ("data-encoding",)
    assert "iconv" in str(caught.value.findings[0].fix)


def test_a_csv_is_cut_at_the_separator_that_makes_most_of_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"text, as said";label\n"a, b; c";1\nd;\n', "utf-8")
    assert read(tmp_path / "a.csv").train.to_list() == [
        {"text, as said": "a, b; c", "label": 1},
        {"text, as said": "d", "label": None},
    ]


def test_a_column_of_a_csv_is_numbers_only_if_all_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.data.tables.CHUNK_ROWS", 2)
    (tmp_path / "a.csv").write_text("text,id,score,label\n1,007,1,+1\n2,1,2.5,2\n3,2,,3\nx,3,1e3,\n", "utf-8")
    rows = read(tmp_path / "a.csv").train
    assert rows["text"][:] == ["1", "2", "3", "x"], "the last cell is no number"
    assert rows["id"][:] == ["007", "1", "2", "3"], "a number does not begin with zeros"
    assert rows["score"][:] == [1.0, 2.5, None, 1000.0]
    assert rows["label"][:] == [1, 2, 3, None]


def test_parquet_parts_without_names_are_rows_to_train_on(tmp_path: Path) -> None:
    for name, row in zip(("part-0", "part-1", "part-2"), ROWS, strict=True):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    rows = read(tmp_path)
    assert rows.train.to_list() == ROWS
    assert rows.eval is None
    pq.write_table(pa.Table.from_pylist([{"other": [1]}]), tmp_path / "part-3.parquet")
    assert read(tmp_path).train.num_rows == 4, "a column that some parts lack is empty there"
    pq.write_table(pa.Table.from_pylist([{"text": [1]}]), tmp_path / "part-4.parquet")
    with pytest.raises(UnreadableError) as caught:
        read(tmp_path)
    assert caught.value.codes == ("data-mixed",)


@pytest.mark.parametrize("name", ["large.jsonl", "large.csv", "large.parquet", "parts"])
def test_rows_over_the_limit_lie_on_the_disk_and_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr("tunekit.data.tables.CHUNK_ROWS", 10)
    monkeypatch.setattr("tunekit.data.tables.MOST_BYTES", 2000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    rows = [{"text": f"row {i} " + "x" * 50, "label": i} for i in range(95)]
    path = tmp_path / name
    if name == "large.jsonl":
        jsonl(path, rows)
    elif name == "large.csv":
        path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows), "utf-8")
    elif name == "large.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    else:
        path.mkdir()
        for i in range(0, 95, 5):
            pq.write_table(pa.Table.from_pylist(rows[i : i + 5]), path / f"part-{i:02}.parquet")
    before = pa.total_allocated_bytes()
    found = read(path).train
    assert pa.total_allocated_bytes() - before < 4000, "what is over the limit is not in memory"
    assert found.to_list() == rows
    assert list((tmp_path / "kept").iterdir()) == [], "nothing is left behind"


def test_json_lines_under_a_json_name_are_read(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "a.json")).train.to_list() == ROWS


@pytest.mark.parametrize(
    "name",
    ["nowhere.jsonl", "./nowhere", "a/b/c", "/nowhere/x", "my rows", "~/nowhere.csv", "x.pkl", "", "csv", "json"],
)
def test_what_looks_like_a_path_and_is_missing_is_no_hub_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", called)
    with pytest.raises(MissingError) as caught:
        read(name)
    assert caught.value.codes == ("data-missing",)


def test_a_hub_id_without_a_network_says_so() -> None:
    assert not looks_like_path("some-owner/some-rows")
    with pytest.raises(MissingError) as caught:
        read("some-owner/some-rows")
    assert caught.value.codes == ("data-unreachable",)
    assert isinstance(caught.value, FileNotFoundError)


def test_missing_splits_name_what_is_there(tmp_path: Path) -> None:
    source = datasets.DatasetDict(training=datasets.Dataset.from_list(ROWS))
    with pytest.raises(MissingError, match="training"):
        read(source)
    with pytest.raises(MissingError) as caught:
        read(ROWS, eval_split="dev")
    assert caught.value.codes == ("data-split",)
    jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(MissingError, match=r"rows\.jsonl"):
        read(tmp_path)


def test_two_files_of_one_split_are_for_the_user_to_tell_apart(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    write(tmp_path, "train.csv")
    with pytest.raises(InvalidError) as caught:
        read(tmp_path)
    assert caught.value.codes == ("data-ambiguous",)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ([], "data-empty"),
        ([{}], "data-empty"),
        (datasets.Dataset.from_dict({"text": []}), "data-empty"),
        (["a", "b"], "data-type"),
        (3, "data-type"),
        (datasets.IterableDataset.from_generator(lambda: iter(ROWS)), "data-type"),
    ],
    ids=["no rows", "no columns", "empty Dataset", "texts", "number", "stream"],
)
def test_live_objects_that_hold_no_rows_are_refused(source: Any, code: str) -> None:
    with pytest.raises((InvalidError, UnreadableError)) as caught:
        read(source)
    assert caught.value.codes == (code,)


def test_a_split_without_rows_is_left_out_and_takes_nobody_s_place() -> None:
    rows = read({"train": [{"text": "a"}], "test": []})
    assert (len(rows.train), rows.eval) == (1, None)
    with pytest.raises(MissingError) as caught:
        read({"train": [], "test": [{"text": "a"}]})
    assert caught.value.codes == ("data-split",)
