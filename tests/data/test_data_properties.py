"""What must hold for any rows, tried on many."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tunekit.data.generate import span_mask
from tunekit.data.labels import IGNORE, encode_labels
from tunekit.data.read import read
from tunekit.data.spans import answer_encoder, first_tokens, token_encoder
from tunekit.data.tally import Tally

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.lists(st.fixed_dictionaries({"text": TEXT, "label": st.integers(-(2**62), 2**62)}), min_size=1, max_size=9))
def test_json_lines_come_back_as_they_were_written(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for ascii_only in (True, False):
            path = Path(folder) / "rows.jsonl"
            path.write_text("".join(json.dumps(r, ensure_ascii=ascii_only) + "\n" for r in rows), "utf-8", newline="")
            assert read(path).train.to_list() == rows


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9), st.sampled_from(",;\t|"))
def test_separated_values_come_back_as_they_were_written(rows: list[tuple[str, str]], separator: str) -> None:
    rows = [(f"a{x}", f"b{y}") for x, y in rows]  # texts that spell numbers become numbers
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([("one", "two"), *rows])
        assert [(r["one"], r["two"]) for r in read(path).train] == rows


@pytest.mark.parametrize("kind", ["minilm", "pieces"])
@shared
@given(words=st.lists(WORD, min_size=1, max_size=12))
def test_every_visible_word_carries_its_tag_in_order(
    words: list[str], kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    tags = [f"t{i % 3}" for i in range(len(words))]
    made = token_encoder(tokenizer, None, ("t0", "t1", "t2"), Tally())({"tokens": [words], "tags": [tags]}, [0])
    assert [f"t{x}" for x in made["labels"][0] if x != IGNORE] == tags


@shared
@given(words=st.lists(WORD, min_size=1, max_size=12))
def test_byte_level_tokens_begin_where_their_word_does(words: list[str], bpe: PreTrainedTokenizerBase) -> None:
    text = " ".join(words)
    offsets = bpe(text, return_offsets_mapping=True)["offset_mapping"]
    found = first_tokens(words, offsets)
    assume(len(set(found.values())) == len(words))  # a token may hold two words only if it holds a space inside
    start = 0
    for i, word in enumerate(words):
        low, high = offsets[found[i]]
        assert low <= start < high
        start += len(word) + 1


@pytest.mark.parametrize("kind", ["bpe", "pieces"])
@shared
@given(words=st.lists(WORD, min_size=2, max_size=80), data=st.data(), limit=st.integers(24, 64))
def test_an_answer_is_in_a_window_whole_or_the_window_says_none(
    words: list[str], data: st.DataObject, limit: int, kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    context, answer = " ".join(words), " ".join(words[first : last + 1])
    start = len(" ".join(words[:first])) + (first > 0)
    batch = {"question": ["where"], "context": [context], "answers": [{"text": [answer], "answer_start": [start]}]}
    made = answer_encoder(tokenizer, limit, Tally())(batch, [0])
    for ids, low, high in zip(made["input_ids"], made["start_positions"], made["end_positions"], strict=True):
        assert len(ids) <= limit
        assert (low, high) == (0, 0) or answer in tokenizer.decode(ids[low : high + 1])
    long = len(tokenizer(answer)["input_ids"]) * 2 + 12 > limit
    assert long or any(low for low in made["start_positions"])


@given(st.lists(st.integers(1, 4), max_size=30), st.data())
def test_a_mask_holds_the_tokens_that_overlap_a_span(widths: list[int], data: st.DataObject) -> None:
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    offsets = [(e - w, e) for e, w in zip(ends, widths, strict=True)]
    cuts = sorted(data.draw(st.sets(st.integers(0, (ends or [0])[-1]), max_size=6)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    mask, astride = span_mask(offsets, spans)
    inside = [any(max(a, s) < min(b, e) for s, e in spans) for a, b in offsets]
    assert mask == inside
    assert astride == any(a < s < b for a, b in offsets for s, _ in spans)


@given(st.lists(st.sets(st.sampled_from("abcde")), min_size=1, max_size=9))
def test_several_classes_come_back_from_their_zeros_and_ones(rows: list[set[str]]) -> None:
    encoded = encode_labels([sorted(r) for r in rows], tuple("abcde"), "multi_label_classification")
    assert [{name for name, on in zip("abcde", row, strict=True) if on} for row in encoded] == rows


@pytest.mark.parametrize("labels", [[], None])
def test_a_row_without_classes_is_all_zeros_and_a_null_is_refused(labels: Any) -> None:
    if labels is None:
        with pytest.raises(ValueError, match="labels-missing"):
            encode_labels([labels], ("a", "b"), "multi_label_classification")
    else:
        assert encode_labels([labels], ("a", "b"), "multi_label_classification") == [[0.0, 0.0]]
