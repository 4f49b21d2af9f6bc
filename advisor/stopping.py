"""How often a plan is evaluated, and after how many evaluations without a better score it stops."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunekit.finding import Finding, note
from tunekit.workload import Workload

SOURCE = (
    "Prechelt, Early Stopping - But When?, 1998 (slower criteria generalise a little better, at more time); Dodge et al., "
    "Fine-Tuning Pretrained Language Models: Weight Initializations, Data Orders, and Early Stopping, 2020; Zhang et al., "
    "Revisiting Few-sample BERT Fine-tuning, 2021, and Mosbach et al., On the Stability of Fine-tuning BERT, 2021 (small sets "
    "need more steps than is usual, so nothing may stop them early in the run)"
)
EVALUATIONS = 10
"""Of a run that passes the rows fewer times than this; a longer one is evaluated once an epoch."""
_FEWEST = 4
LEAST_HELD_OUT = 20
"""With fewer rows than this one more right answer moves the score by over five points: nothing to stop a run by."""
_COST = 0.25
"""Share of the training's time that evaluating may take."""
_ROWS_PER_TRAINED = 3
"""A row that is evaluated takes a forward pass, a third of what a trained one takes."""
_PATIENCE = ((1_000, 5), (10_000, 4), (100_000, 3))
"""Evaluations to wait at least, up to this many rows: the fewer rows are held out, the noisier the score."""
_LEAST_PATIENCE = 2
_SHARE_WAITED = 0.25
"""Share of the run to wait at least: a method that starts slowly is at chance for the first tenth or two."""
_LARGE = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """Two fields of a plan."""

    eval_interval: float | None = None
    early_stopping_patience: int | None = None


def stopping(workload: Workload, held_out: int, epochs: float, trains_base: bool) -> Stopping:
    """Evaluation and early stopping by the size of the data.

    Args:
        workload: The question.
        held_out: Rows to evaluate on; with none or a handful nothing can be stopped early.
        epochs: Passes over the rows.
        trains_base: Whether each checkpoint holds the whole base.

    Example:
        >>> from tunekit.advisor.rule import example
        >>> stopping(example("lora", num_examples=500).workload, held_out=50, epochs=16, trains_base=False)
        Stopping(eval_interval=None, early_stopping_patience=5)
        >>> stopping(example("lora", num_examples=50_000).workload, held_out=5000, epochs=3, trains_base=False)
        Stopping(eval_interval=0.1, early_stopping_patience=3)
    """
    rows = workload.data.num_examples
    # A checkpoint of a whole large model takes longer than what it could save.
    if held_out < LEAST_HELD_OUT or not rows or (trains_base and workload.model.num_parameters >= _LARGE):
        return Stopping()
    affordable = int(_COST * _ROWS_PER_TRAINED * epochs * rows / held_out)
    wanted = max(epochs, EVALUATIONS)
    count = max(_FEWEST, min(wanted, affordable))
    interval = None if count == epochs else math.ceil(1000 / count) / 1000
    least = next((n for most, n in _PATIENCE if rows < most), _LEAST_PATIENCE)
    patience = max(least, math.ceil(_SHARE_WAITED * count))
    # A single pass sees no row twice; and a patience as long as the run stops nothing.
    stops = epochs > 1 and patience < count
    return Stopping(eval_interval=interval, early_stopping_patience=patience if stops else None)


def without_rows(workload: Workload, held_out: int) -> list[Finding]:
    """Why no plan of this question stops early, where too few rows are held out for it."""
    rows = workload.data.num_examples
    # Facts by hand say nothing of rows to evaluate on, nor do they leave them out.
    if held_out >= LEAST_HELD_OUT or not rows or not workload.data.fingerprint:
        return []
    fix = "bring an evaluation split of a hundred rows or more, or pass `eval_dataset=`"
    if held_out:
        why = f"{held_out} rows are held out: one more right answer moves their score by {100 / held_out:.0f} points"
    elif workload.data_source is None:
        why = "no rows to evaluate on are known"
    else:
        why = f"a share of {rows:,} rows would tell less than it takes from the training"
        fix = f"set `data.eval_share`, or {fix}"
    return [note("early-stopping-without-rows", "no plan stops early", why, fix, SOURCE)]
