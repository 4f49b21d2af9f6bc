"""Rows become tokens and labels, right for each task, with nothing left behind and nothing dropped in silence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tunekit.data.columns import resolve
from tunekit.data.encode import Encoded, encode
from tunekit.data.labels import IGNORE
from tunekit.data.spans import first_tokens
from tunekit.errors import InvalidError, MissingError, TunekitError
from tunekit.task import Task


def encoded(data: Dataset | dict[str, Any], task: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Encoded:
    data = Dataset.from_dict(data) if isinstance(data, dict) else data
    columns = settings.pop("columns", None) or resolve(data, None, Task.named(task))
    return encode(data, Task.named(task), tokenizer, columns=columns, **settings)


def learnt(tokenizer: PreTrainedTokenizerBase, row: dict[str, list[int]]) -> str:
    """The text that the loss sees."""
    assert all(x in (IGNORE, t) for x, t in zip(row["labels"], row["input_ids"], strict=True))
    return tokenizer.decode([x for x in row["labels"] if x != IGNORE])


# ------------------------------------------------------------------------------------------------------- classification
def test_sequences_carry_their_class_and_the_tokenizer_s_own_columns(minilm: PreTrainedTokenizerBase) -> None:
    made = encoded(
        {"text": ["good film", "bad"], "label": ["pos", "neg"], "id": [1, 2]}, "sequence-classification", minilm
    )
    assert set(made.dataset.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert made.dataset["labels"][:] == [1, 0]
    assert made.dataset[0]["input_ids"] == minilm("good film")["input_ids"]
    assert made.findings == ()


def test_two_sentences_are_told_apart(minilm: PreTrainedTokenizerBase, bpe: PreTrainedTokenizerBase) -> None:
    data = {"premise": ["a cat"], "hypothesis": ["a dog"], "label": [0]}
    row = encoded(data, "sequence-classification", minilm, label_names=("a", "b")).dataset[0]
    assert row["token_type_ids"] == minilm("a cat", "a dog")["token_type_ids"]
    assert 1 in row["token_type_ids"]
    # A tokenizer that puts nothing between two texts gets a line end.
    row = encoded(data, "sequence-classification", bpe, label_names=("a", "b")).dataset[0]
    assert bpe.decode(row["input_ids"]) == "a cat\na dog"


def test_labels_take_the_type_that_the_loss_wants(minilm: PreTrainedTokenizerBase) -> None:
    several = encoded({"text": ["a", "b"], "labels": [["x"], ["x", "y"]]}, "sequence-classification", minilm)
    assert several.dataset["labels"][:] == [[1.0, 0.0], [1.0, 1.0]]
    number = encoded({"text": ["a", "b"], "score": [1.5, 2.0]}, "sequence-classification", minilm)
    assert number.dataset["labels"][:] == [1.5, 2.0]


def test_the_evaluation_rows_get_the_ids_of_the_training_rows(minilm: PreTrainedTokenizerBase) -> None:
    made = encoded({"text": ["x"], "label": ["c"]}, "sequence-classification", minilm, label_names=("a", "b", "c"))
    assert made.dataset["labels"][:] == [2]


def test_rows_without_labels_are_encoded_for_prediction(minilm: PreTrainedTokenizerBase) -> None:
    made = encoded({"text": ["x"]}, "sequence-classification", minilm, columns={"text": "text"})
    assert set(made.dataset.column_names) == {"input_ids", "token_type_ids", "attention_mask"}


def test_cut_rows_are_counted_exactly(minilm: PreTrainedTokenizerBase) -> None:
    data = {"text": ["a b c", "a b c d", "a b c d e"], "label": [0, 1, 0]}
    made = encoded(data, "sequence-classification", minilm, max_length=6)
    assert [len(row) for row in made.dataset["input_ids"]] == [5, 6, 6]
    assert [f.code for f in made.findings] == ["rows-truncated"]
    assert "1 of 3 rows (first: 2)" in made.findings[0].seen


def test_the_tokenizer_s_own_limit_is_kept_where_none_is_given(minilm: PreTrainedTokenizerBase) -> None:
    made = encoded({"text": ["a " * 600, "b"], "label": [0, 1]}, "sequence-classification", minilm)
    assert len(made.dataset[0]["input_ids"]) == 512


# -------------------------------------------------------------------------------------------------------------- tokens
WORDS = ["Alice", "visited", "unbelievableplace", "in", "don", "'t", "Österreich", "🙂", "."]
TAGS = ["B-person", "O", "B-place", "O", "O", "O", "B-place", "O", "O"]


@pytest.mark.parametrize("kind", ["minilm", "bpe", "pieces"])
def test_each_word_s_tag_is_on_its_first_sub_token(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    made = encoded({"tokens": [WORDS], "tags": [TAGS]}, "token-classification", tokenizer)
    row, names = made.dataset[0], sorted(set(TAGS))
    text, offsets = " ".join(WORDS), tokenizer(" ".join(WORDS), return_offsets_mapping=True)["offset_mapping"]
    assert [names[x] for x in row["labels"] if x != IGNORE] == TAGS
    starts = [sum(len(w) + 1 for w in WORDS[:i]) for i in range(len(WORDS))]
    for start, token in zip(starts, [i for i, x in enumerate(row["labels"]) if x != IGNORE], strict=True):
        low, high = offsets[token]
        assert low <= start < high
        assert text[low:start].strip() == ""


def test_tags_agree_with_the_tokenizer_s_own_word_ids(minilm: PreTrainedTokenizerBase) -> None:
    split = minilm(WORDS, is_split_into_words=True)
    expected = [t for t, w in enumerate(split.word_ids()) if w is not None and w != ([None, *split.word_ids()][t])]
    made = encoded({"tokens": [WORDS], "tags": [TAGS]}, "token-classification", minilm).dataset[0]
    assert made["input_ids"] == split["input_ids"]
    assert [t for t, x in enumerate(made["labels"]) if x != IGNORE] == expected


def test_words_without_a_token_lose_their_tag_and_are_reported(minilm: PreTrainedTokenizerBase) -> None:
    data = {"tokens": [["a", "\u200b", "b"], ["", "b"]], "tags": [["O", "B-x", "B-x"], ["O", "B-x"]]}
    made = encoded(data, "token-classification", minilm)
    assert [[x for x in row if x != IGNORE] for row in made.dataset["labels"]] == [[1, 0], [0]]
    assert "2 of 2 rows (first: 0)" in next(f.seen for f in made.findings if f.code == "words-lost")


def test_cut_words_lose_their_tag_only_by_the_cut(minilm: PreTrainedTokenizerBase) -> None:
    made = encoded(
        {"tokens": [list("abcdefgh")], "tags": [["O", "B-x"] * 4]}, "token-classification", minilm, max_length=5
    )
    assert made.dataset[0]["labels"] == [IGNORE, 1, 0, 1, IGNORE]
    assert [f.code for f in made.findings] == ["rows-truncated"]


def test_first_tokens_of_words_that_share_one() -> None:
    assert first_tokens(["a", "b", "cd"], [(0, 3), (3, 5), (5, 6)]) == {0: 0, 2: 1}


def test_rows_without_words_are_left_out_and_reported(minilm: PreTrainedTokenizerBase) -> None:
    made = encoded(
        {"tokens": [["a"], []], "tags": [["O"], []]}, "token-classification", minilm, label_names=("O", "B-x")
    )
    assert len(made.dataset) == 1
    assert "1 of 2 rows (first: 1)" in next(f.seen for f in made.findings if f.code == "rows-unsupervised")


# ------------------------------------------------------------------------------------------------------------- answers
def question(answer: str, context: str, start: int | None = None) -> dict[str, Any]:
    at = context.index(answer) if start is None else start
    return {"question": ["where is it ?"], "context": [context], "answers": [{"text": [answer], "answer_start": [at]}]}


@pytest.mark.parametrize("kind", ["minilm", "bpe", "pieces"])
def test_answers_decode_to_themselves(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    context = "Long ago it stood in Österreich (AT), they say."
    for answer in ("Österreich", "Long", "they say", "say."):
        row = encoded(question(answer, context), "question-answering", tokenizer).dataset[0]
        found = tokenizer.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1]).strip()
        assert answer.lower().replace("ö", "o") in found.lower().replace("ö", "o")
        assert len(found) <= len(answer) + 2


@pytest.mark.parametrize("kind", ["minilm", "bpe", "pieces"])
def test_long_contexts_become_windows_that_share_tokens(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    words = [f"w{i}" for i in range(200)]
    made = encoded(question("w100 w101", " ".join(words)), "question-answering", tokenizer, max_length=60)
    assert len(made.dataset) > 3
    held = 0
    seen: list[str] = []
    for row in made.dataset:
        assert len(row["input_ids"]) <= 60
        text = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        seen += text.split()
        whole = "w100 w101" in text
        found = tokenizer.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1]).strip()
        none = (row["start_positions"], row["end_positions"]) == (0, 0)
        assert (found == "w100 w101") if whole else none
        held += whole
    assert held >= 1
    assert set(words) <= set(seen)


def test_questions_without_an_answer_point_at_cls(minilm: PreTrainedTokenizerBase) -> None:
    data = {"question": ["q"], "context": ["c"], "answers": [{"text": [], "answer_start": []}]}
    data = Dataset.from_dict(data).cast_column("answers", {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int64"))})  # fmt: skip
    row = encoded(data, "question-answering", minilm).dataset[0]
    assert (row["start_positions"], row["end_positions"]) == (0, 0)


def test_a_moved_answer_is_found_if_it_occurs_once_and_reported(minilm: PreTrainedTokenizerBase) -> None:
    made = encoded(question("Oslo", "It is Oslo.", 2), "question-answering", minilm)
    assert [f.code for f in made.findings] == ["answers-moved"]
    row = made.dataset[0]
    assert minilm.decode(row["input_ids"][row["start_positions"]]) == "oslo"
    with pytest.raises(InvalidError) as caught:
        encoded(question("Oslo", "Oslo or Oslo", 3), "question-answering", minilm)
    assert caught.value.codes == ("answer-missing",)


def test_a_question_longer_than_a_window_leaves_room_for_the_context(minilm: PreTrainedTokenizerBase) -> None:
    data = {"question": ["why " * 100], "context": ["because of Oslo"], "answers": ["Oslo"]}
    made = encoded(data, "question-answering", minilm, max_length=32).dataset
    assert any("oslo" in minilm.decode(row["input_ids"]) for row in made)
    assert all(len(row["input_ids"]) <= 32 for row in made)


# ------------------------------------------------------------------------------------------------------ choices, seq2seq
def test_choices_are_nested_and_every_kind_of_label_names_one(minilm: PreTrainedTokenizerBase) -> None:
    for label in (1, "B", "(b)", "went home"):
        data = {"question": ["he"], "choices": [["ran", "went home"]], "answer": [label]}
        row = encoded(data, "multiple-choice", minilm).dataset[0]
        assert row["labels"] == 1
        assert row["input_ids"] == minilm(["he", "he"], ["ran", "went home"])["input_ids"]
    marked = {"question": ["he"], "choices": [{"text": ["ran", "sat"], "label": ["1", "2"]}], "answerKey": ["2"]}
    assert encoded(marked, "multiple-choice", minilm).dataset["labels"][:] == [1]


def test_sources_and_targets_end_as_the_tokenizer_ends_them(minilm: PreTrainedTokenizerBase) -> None:
    row = encoded({"document": ["a long story"], "summary": ["a story"]}, "seq2seq", minilm).dataset[0]
    assert row["input_ids"] == minilm("a long story")["input_ids"]
    assert row["labels"] == minilm("a story")["input_ids"]
    assert set(row) == {"input_ids", "attention_mask", "labels"}


def test_targets_are_cut_too(minilm: PreTrainedTokenizerBase) -> None:
    made = encoded({"source": ["a"], "target": ["b " * 50]}, "seq2seq", minilm, max_length=8)
    assert len(made.dataset[0]["labels"]) == 8
    assert [f.code for f in made.findings] == ["rows-truncated"]


# ----------------------------------------------------------------------------------------------------------- causal-lm
def test_plain_text_is_supervised_whole_and_closed(bpe: PreTrainedTokenizerBase) -> None:
    row = encoded({"text": ["the film was good"]}, "causal-lm", bpe).dataset[0]
    assert learnt(bpe, row) == "the film was good<eos>"


def test_a_prompt_is_not_supervised_its_completion_is_with_the_end(bpe: PreTrainedTokenizerBase) -> None:
    row = encoded({"prompt": ["what is it?"], "completion": [" a film"]}, "causal-lm", bpe).dataset[0]
    assert bpe.decode(row["input_ids"]) == "what is it? a film<eos>"
    assert learnt(bpe, row) == " a film<eos>"


def test_an_instruction_is_set_apart_from_its_response(bpe: PreTrainedTokenizerBase) -> None:
    data = {"instruction": ["say it", "say it"], "input": ["good", ""], "response": ["bad", "fine"]}
    made = encoded(data, "causal-lm", bpe).dataset
    assert [bpe.decode(row["input_ids"]) for row in made] == ["say it\n\ngood\nbad<eos>", "say it\nfine<eos>"]
    assert [learnt(bpe, row) for row in made] == ["bad<eos>", "fine<eos>"]


def test_a_template_makes_the_prompt(bpe: PreTrainedTokenizerBase) -> None:
    data = {"instruction": ["do"], "input": [None], "topic": ["x"], "response": [" ok"]}
    data = Dataset.from_dict(data).cast_column("input", datasets.Value("string"))
    made = encoded(data, "causal-lm", bpe, template="{topic}: {instruction}{input} ->").dataset[0]
    assert bpe.decode(made["input_ids"]) == "x: do -> ok<eos>"
    with pytest.raises(MissingError) as caught:
        encoded(data, "causal-lm", bpe, template="{nothing}")
    assert caught.value.codes == ("template-field",)
    with pytest.raises(InvalidError) as wrong:
        encoded({"text": ["a"]}, "causal-lm", bpe, template="{text}")
    assert wrong.value.codes == ("template-task",)


@pytest.mark.parametrize("form", ["{instruction:d}", "{instruction:{width}}", "{instruction!x}"])
def test_a_template_that_no_row_can_be_written_with_is_refused(form: str, bpe: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InvalidError) as caught:
        encoded({"instruction": ["do"], "response": [" ok"]}, "causal-lm", bpe, template=form)
    assert caught.value.codes == ("template-format",)


def test_a_token_astride_prompt_and_completion_is_reported(bpe: PreTrainedTokenizerBase) -> None:
    made = encoded({"prompt": ["the "], "completion": ["film"]}, "causal-lm", bpe)
    assert [f.code for f in made.findings] == ["rows-boundary"]
    assert encoded({"prompt": ["the"], "completion": [" film"]}, "causal-lm", bpe).findings == ()


def test_rows_whose_answer_is_cut_off_are_left_out_and_reported(bpe: PreTrainedTokenizerBase) -> None:
    data = {"prompt": ["a b", "a b " * 30], "completion": [" c", " c"]}
    made = encoded(data, "causal-lm", bpe, max_length=16)
    assert len(made.dataset) == 1
    assert {f.code for f in made.findings} == {"rows-truncated", "rows-unsupervised"}
    assert all("1 of 2 rows (first: 1)" in f.seen for f in made.findings)
    with pytest.raises(InvalidError) as caught:
        encoded(data, "causal-lm", bpe, max_length=2)
    assert caught.value.codes == ("data-unsupervised",)


# ------------------------------------------------------------------------------------------------------------ manners
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("sequence-classification", {"text": ["a", None], "label": [0, 1]}, "text-missing"),
    ("token-classification", {"tokens": [["a", "b"]], "tags": [["O"]]}, "tags-length"),
    ("question-answering", {"question": ["q"], "context": ["c"], "answers": ["x"]}, "answer-missing"),
    ("multiple-choice", {"text": ["q", "q"], "choices": [["a", "b"], ["a"]], "label": [0, 0]}, "choices-uneven"),
    ("multiple-choice", {"text": ["q"], "choices": [["a", "b"]], "label": [2]}, "labels-range"),
    ("causal-lm", {"prompt": ["a"], "completion": [None]}, "text-missing"),
    ("seq2seq", {"source": ["a", None], "target": ["b", "c"]}, "text-missing"),
]


@pytest.mark.parametrize(("task", "data", "code"), BAD, ids=[f"{b[0]}-{b[2]}" for b in BAD])
def test_bad_rows_are_one_clear_error(
    task: str, data: dict[str, Any], code: str, minilm: PreTrainedTokenizerBase
) -> None:
    names = tuple(sorted({t for row in data.get("tags", ()) for t in row}))
    columns = {name: name for name in data}
    with pytest.raises(TunekitError) as caught:
        encode(Dataset.from_dict(data), Task.named(task), minilm, columns=columns, label_names=names)
    assert caught.value.codes == (code,)
    assert caught.value.findings[0].fix


def test_rows_stay_as_they_were_and_nothing_is_written(
    minilm: PreTrainedTokenizerBase, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = Dataset.from_dict({"text": ["a " * 700, "b"] * 700, "label": [0, 1] * 700, "more": list(range(1400))})
    source.save_to_disk(tmp_path / "rows")
    data = datasets.load_from_disk(tmp_path / "rows").with_format("torch")
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    with caplog.at_level(logging.WARNING):
        made = encoded(data, "sequence-classification", minilm)
        encoded(data, "sequence-classification", minilm, max_length=1000)
    assert capfd.readouterr().err == ""
    assert caplog.text == ""
    assert made.dataset.cache_files == []
    assert sorted(tmp_path.rglob("*")) == before
    assert data.column_names == ["text", "label", "more"]
    assert data.format["type"] == "torch"
    assert datasets.utils.is_progress_bar_enabled()


def test_large_rows_go_to_a_folder_of_the_process(
    minilm: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunekit.data.place._IN_MEMORY_BYTES", 1)
    registered: list[tuple[Any, ...]] = []
    monkeypatch.setattr("tunekit.data.place.atexit.register", lambda *a, **k: registered.append(a))
    made = encoded({"text": ["a", "b"], "label": [0, 1]}, "sequence-classification", minilm)
    folder = Path(made.dataset.cache_files[0]["filename"]).parent
    assert registered[0][1] == str(folder)
    registered[0][0](folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("token-classification", {"tokens": [["a", "b"], ["a", None]], "tags": [["O", "X"], ["O", "O"]]}),
        ("multiple-choice", {"question": ["q", "q"], "choices": [["a", "b"], ["a", None]], "label": [0, 1]}),
    ],
)
def test_a_null_inside_a_row_is_refused_by_its_row(
    task: str, data: dict[str, Any], minilm: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InvalidError, match="row 1") as caught:
        encoded(data, task, minilm)
    assert caught.value.codes == ("text-missing",)
