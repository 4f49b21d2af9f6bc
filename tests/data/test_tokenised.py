"""Rows that come tokenised are taken as they are or refused in words."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

import tunekit
from tunekit.data.tokenised import check_tokenised


@pytest.mark.parametrize("ids", [[[1, 2], [3]], [[1], []], [[[1, 2], [3]], [[4], [5, 6]]]])
def test_lists_of_whole_numbers_are_taken(ids: list[Any]) -> None:
    check_tokenised(datasets.Dataset.from_dict({"input_ids": ids}))


@pytest.mark.parametrize("ids", [[None], [[1, 2], None], [1, 2], ["1 2", "3"], [[1.5]], [["a"]], [[[[1]]]]])
def test_anything_else_is_refused_in_words(ids: list[Any]) -> None:
    with pytest.raises(tunekit.TunekitError, match=r"\[rows-tokenised\] `input_ids` .*drop the column"):
        check_tokenised(datasets.Dataset.from_dict({"input_ids": ids}))


def test_rows_that_were_chosen_from_others_are_judged_alone() -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], None, [3]]})
    check_tokenised(rows.select([0, 2]))
    with pytest.raises(tunekit.TunekitError, match=r"null in 1 of 2 rows"):
        check_tokenised(rows.select([0, 1]))
