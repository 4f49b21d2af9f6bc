"""The batches of a run as far as they decide shapes: how long the longest and the average padded row are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from tunekit.advisor.simulate.collated import Shape
from tunekit.advisor.simulate.loop import Loop
from tunekit.data.packing import best_fit
from tunekit.plan import Plan
from tunekit.workload import DataFacts, ModelFacts

_ASSUMED_LENGTH = 512
"""Tokens a row where neither plan, data nor model say anything."""
_SHARE_STEP = 0.125
PEFT_WINDOW = 80
"""Rows that PEFT's benchmark sorts by length, longest first, before it cuts them into batches."""
PEFT_SHORTEST, _PEFT_TYPICAL, PEFT_MEAN = 104, 228, 210
"""Tokens of its shortest batches, its average batch (padded) and its average row, where no lengths are given: its data
are always the same rows, of which it publishes the sum of tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """The shapes a run's steps have."""

    longest: Shape
    """The largest batch of the run: it decides the memory."""
    typical: Shape
    """One with the average padded length: it decides the duration."""
    mean_tokens: float
    """Tokens a row without padding, target included."""
    rows_per_example: float = 1.0
    """Below one where several examples share a row."""


def batches(plan: Plan, model: ModelFacts, data: DataFacts | None, loop: Loop) -> Batches:
    """The shapes of a plan's batches.

    Lengths come from the data, cut at `max_length` and at what the model's positions allow; without data every row is
    as long as that allows.
    """
    made = _batches(plan, model, data, loop)
    if plan.loss_kernel != "chunked" or data is None or not data.supervised_tokens:
        return made
    # In steps, so that nearly equal questions share a trace. For seq2seq the targets are what is padded.
    padded = made.longest.target_length or made.typical.length
    tokens = data.supervised_tokens / made.rows_per_example
    share = min(1.0, max(_SHARE_STEP, _SHARE_STEP * ceil(tokens / padded / _SHARE_STEP)))
    return replace(made, longest=replace(made.longest, supervised=share), typical=replace(made.typical, supervised=share))  # fmt: skip


def _batches(plan: Plan, model: ModelFacts, data: DataFacts | None, loop: Loop) -> Batches:
    cap = _cap(plan, model)
    if loop == "peft-benchmark" and not (data and data.lengths):
        return _peft_benchmark(plan, cap or _ASSUMED_LENGTH)
    known = _cut(data.lengths if data else (), cap)
    targets = _cut(data.target_lengths if data else (), cap)
    if plan.packing and known is not None:
        return _packed(plan, known)
    rows = plan.per_device_train_batch_size
    full = plan.packing or known is None
    top = cap or _ASSUMED_LENGTH
    longest = top if full or known is None else int(known.max())
    mean = float(longest if full or known is None else expected_longest(known, rows, loop, plan.effective_batch_size))
    target = int(targets.max()) if targets is not None else (longest if plan.task == "seq2seq" else 0)
    target_mean = expected_longest(targets, rows) if targets is not None else target
    padded = rows > 1 and not full and known is not None and bool(known[0] < known[-1])
    choices = (data.num_choices if data else None) or (2 if plan.task == "multiple-choice" else 1)
    biggest = Shape(
        batch=rows, length=longest, target_length=target, choices=choices, padded=padded,
        previous_length=_previous(known, longest) if loop == "peft-benchmark" else 0,
    )  # fmt: skip
    usual = Shape(
        batch=rows, length=_near(mean), target_length=_near(target_mean), choices=choices, padded=padded,
        previous_length=_near(mean) if loop == "peft-benchmark" else 0,
    )  # fmt: skip
    tokens = float(known.mean() if known is not None and not full else longest)
    tokens = (tokens + float(targets.mean() if targets is not None else target)) * choices
    return Batches(longest=biggest, typical=usual, mean_tokens=tokens)


def _packed(plan: Plan, known: np.ndarray) -> Batches:
    """Full sequences under a mask that keeps their examples apart, as `tunekit.data.packing` makes them of these lengths."""
    capacity = plan.max_length or int(known[-1])
    share = len(best_fit(known.tolist(), capacity)) / len(known)
    longest = Shape(batch=plan.per_device_train_batch_size, length=max(capacity, int(known[-1])))
    return Batches(
        longest=longest, typical=replace(longest, length=capacity), mean_tokens=float(known.mean()) / share, rows_per_example=share
    )  # fmt: skip


def _peft_benchmark(plan: Plan, longest: int) -> Batches:
    """Its batches without lengths: `max_length` is the longest padded one."""
    shape = Shape(batch=plan.per_device_train_batch_size, length=longest, previous_length=min(PEFT_SHORTEST, longest))
    usual = min(_PEFT_TYPICAL, longest)
    return Batches(
        longest=shape, typical=replace(shape, length=usual, previous_length=usual), mean_tokens=min(PEFT_MEAN, longest)
    )


def _cap(plan: Plan, model: ModelFacts) -> int | None:
    return min((n for n in (plan.max_length, model.context_length) if n), default=None)


def _cut(lengths: tuple[int, ...], cap: int | None) -> np.ndarray | None:
    if not lengths:
        return None
    known = np.sort(np.array(lengths, dtype=np.int64))
    return np.minimum(known, cap) if cap else known


def expected_longest(lengths: np.ndarray, rows: int, loop: Loop | None = None, step_rows: int = 0) -> float:
    """The expected longest of `rows` rows: drawn at random, or cut from a window that is sorted by length.

    Args:
        lengths: Tokens a row, ascending.
        rows: Rows of a batch.
        loop: `peft-benchmark` sorts windows of 80 rows, `trainer` of fifty steps or a quarter of the rows; None: at random.
        step_rows: Rows of an optimizer step, for `trainer`.

    Example:
        >>> expected_longest(np.array([10, 10, 10]), 4)
        10.0
        >>> round(expected_longest(np.arange(1, 101), 1), 1)
        50.5
        >>> expected_longest(np.arange(1, 1001), 10, "trainer", 10) < expected_longest(np.arange(1, 1001), 10)
        True
    """
    n = len(lengths)
    if loop is None:
        shares = (np.arange(n + 1) / n) ** rows
        return float((np.diff(shares) * lengths).sum())
    window = PEFT_WINDOW if loop == "peft-benchmark" else max(1, min(n // (4 * step_rows), 50)) * step_rows
    ranks = 1 - (np.arange(0, window, rows) + 0.5) / window
    return float(np.quantile(lengths, ranks).mean())


def _previous(known: np.ndarray | None, longest: int) -> int:
    """The padded length of the batch before the longest one in PEFT's benchmark: the shortest of a sorted window."""
    return int(np.quantile(known, 4 / PEFT_WINDOW)) if known is not None else longest


def _near(length: float) -> int:
    """A length rounded up to a multiple of eight, so that nearly equal questions share a trace."""
    return -(-round(length) // 8) * 8
