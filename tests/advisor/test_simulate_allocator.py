"""The replayed allocator keeps the rules of PyTorch's caching allocator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.advisor.simulate.allocator import CachingAllocator

KIB, MIB = 2**10, 2**20


def reserved_after(*sizes: int) -> int:
    allocator = CachingAllocator()
    for name, size in enumerate(sizes):
        allocator.allocate(name, size)
    return allocator.reserved


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB), (MIB, 2 * MIB), (MIB + 1, 20 * MIB), (10 * MIB - 512, 20 * MIB), (10 * MIB, 10 * MIB), (11 * MIB + 1, 12 * MIB),
        (1000 * MIB + 1, 1002 * MIB),
    ],
)  # fmt: skip
def test_segments_have_the_sizes_that_pytorch_asks_the_device_for(size: int, segment: int) -> None:
    assert reserved_after(size) == segment


def test_sizes_are_rounded_to_512_bytes() -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, 1)
    allocator.allocate(1, 513)
    assert allocator.allocated == 512 + 1024


def test_a_large_block_is_only_split_where_more_than_a_mebibyte_is_left() -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, 12 * MIB)
    allocator.free(0)
    allocator.allocate(1, 11 * MIB)
    assert allocator.allocated == 12 * MIB
    allocator.free(1)
    allocator.allocate(2, 11 * MIB - 512)
    assert allocator.allocated == 11 * MIB - 512


def test_small_requests_share_a_segment_and_never_take_a_large_one() -> None:
    assert reserved_after(*[512 * KIB] * 4) == 2 * MIB
    allocator = CachingAllocator()
    allocator.allocate(0, 50 * MIB)
    allocator.free(0)
    allocator.allocate(1, 512)
    assert allocator.reserved == 52 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = CachingAllocator()
    for name, size in enumerate((60, 30, 40)):
        allocator.allocate(name, size * MIB)
    for name in range(3):
        allocator.free(name)
    allocator.allocate(3, 35 * MIB)
    allocator.allocate(4, 55 * MIB)
    assert allocator.reserved == 130 * MIB
    allocator.allocate(5, 36 * MIB)
    assert allocator.reserved == 166 * MIB, "the block of 40 was taken and split; 30 and what is left are too small"


def test_neighbours_are_joined_when_freed() -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, 90 * MIB)
    allocator.free(0)
    for name in range(1, 4):
        allocator.allocate(name, 30 * MIB)
    for name in (1, 3, 2):
        allocator.free(name)
    allocator.allocate(4, 90 * MIB)
    assert allocator.reserved == 90 * MIB


def test_emptying_the_cache_gives_back_whole_segments_only() -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, 5 * MIB)
    allocator.allocate(1, 5 * MIB)
    allocator.allocate(2, 50 * MIB)
    allocator.free(0)
    allocator.free(2)
    allocator.empty_cache()
    assert allocator.reserved == 20 * MIB
    assert allocator.peak_reserved == 70 * MIB


def test_weights_loaded_into_one_block_waste_nothing() -> None:
    allocator = CachingAllocator()
    allocator.preload(6 * MIB * 10)
    for name in range(10):
        allocator.allocate(name, 6 * MIB)
    assert allocator.reserved == 60 * MIB
    assert reserved_after(*[6 * MIB] * 10) == 80 * MIB


sizes = st.integers(min_value=1, max_value=64 * MIB)


@given(st.lists(st.tuples(st.booleans(), sizes), max_size=60), st.randoms(use_true_random=False))
def test_whatever_happens_the_books_balance(moves: list[tuple[bool, int]], random: object) -> None:
    allocator, alive = CachingAllocator(), {}
    for name, (frees, size) in enumerate(moves):
        if frees and alive:
            gone = random.choice(sorted(alive))  # type: ignore[attr-defined]
            del alive[gone]
            allocator.free(gone)
        else:
            allocator.allocate(name, size)
            alive[name] = size
        assert sum(alive.values()) <= allocator.allocated <= allocator.reserved <= allocator.peak_reserved
    for name in alive:
        allocator.free(name)
    assert allocator.allocated == 0
    allocator.empty_cache()
    assert allocator.reserved == 0
