"""Rows of like length share a batch, in an order that every rank and a resumed run agree on."""

from __future__ import annotations

import random

from tunekit.sampler import GroupedByLength, row_lengths

LENGTHS = [random.Random(i).randint(1, 100) for i in range(400)]


def padded(order: list[int], batch: int) -> int:
    return sum(batch * max(LENGTHS[i] for i in order[k : k + batch]) for k in range(0, len(order), batch))


def test_every_row_comes_once_an_epoch_and_the_order_changes_between_epochs() -> None:
    sampler = GroupedByLength(LENGTHS, 8, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(400))
    assert first != second


def test_grouping_needs_less_padding_than_a_random_order() -> None:
    shuffled = random.Random(0).sample(range(400), 400)
    assert padded(list(GroupedByLength(LENGTHS, 8, seed=1)), 8) < 0.75 * padded(shuffled, 8)


def test_lengths_of_multiple_choice_are_those_of_the_longest_choice() -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"input_ids": [[1, 2, 3], [1]]}, {"input_ids": [[1], [1, 2]]}])
    assert row_lengths(rows) == [3, 2]
    assert row_lengths([{"text": "a"}]) is None
