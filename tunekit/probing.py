"""A tie in the advice, settled by really training the tied plans for a few steps each."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunekit.advice import Advice, Entry
from tunekit.errors import InvalidError, MissingError, raise_all
from tunekit.finding import Finding, error, note

CANDIDATES = 3
"""Plans of the leading group that are trained unless another number is asked for."""
_HELD_OUT = 0.2
_MOST_HELD_OUT = 500
_SCORES = ("accuracy", "f1", "pearson", "exact_match")
"""Scores of the tasks in the order of preference; higher is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """What one plan reached."""

    entry: Entry
    score: float
    """On the held-out rows after the last step; higher is better (the loss counts with its sign turned)."""
    measured: str
    """What the score is: `accuracy`, `f1`, `pearson`, `exact_match` or `loss`."""
    loss: float
    """On the same rows; it tells apart what answered as many of them rightly, where the objectives are the same."""
    seconds: float

    @property
    def text(self) -> str:
        """In a few words."""
        value = -self.score if self.measured == "loss" else self.score
        return f"{self.measured} {value:.4g} in {self.seconds:.0f} s"


def probe(
    advice: Advice,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    *,
    steps: int = 50,
    candidates: int = CANDIDATES,
    **arguments: Any,
) -> tuple[Advice, tuple[Probed, ...]]:
    """Trains the first of the plans that no evidence tells apart, and puts the one that learnt most first.

    Every plan is trained as it stands but for its number of steps, over which its schedule is run whole; all see the same
    rows in the same order and are scored on the same held-out rows. What separates few steps need not separate many: only
    the order within the tie is changed.

    Args:
        advice: With model weights at hand.
        train_dataset: Rows with the task's columns; None: those that the advice was asked about, where they have a path.
        eval_dataset: Held-out rows; None: a fifth of the training rows, at most 500.
        steps: Optimizer steps of each plan.
        candidates: How many plans of the leading tie are trained.
        **arguments: What `tunekit.trainer` takes besides, such as `use_cpu=True`.

    Returns:
        The advice with the tie in the new order and a note that says what was measured, and the measurements, best first.

    Raises:
        InvalidError: `probe-steps`, `probe-candidates`, `probe-rows`.
        MissingError: `nothing-fits`, `probe-data`.

    Example:
        >>> from transformers import GPT2Config
        >>> import tunekit
        >>> advice = tunekit.advise(GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=500), num_examples=2000,
        ...                         mean_tokens=32, hardware="24GB", methods=["lora"])
        >>> probe(advice, steps=0)
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [probe-steps] `steps` is 0: at least one step is trained. Set `steps=50`.
    """
    _check(advice, steps, candidates)
    tied = [e for e in advice.ranked if e.tie == advice.ranked[0].tie][:candidates]
    if len(tied) < 2:
        seen = f"nothing to probe: {tied[0].plan.method.title} is alone at the top"
        return replace(advice, findings=(*advice.findings, note("probe", seen, "the evidence tells it apart"))), ()
    train, held_out = _rows(advice, train_dataset, eval_dataset)
    probed = [_probed(entry, train, held_out, steps, arguments) for entry in tied]
    plain = all(e.plan.objective is None for e in tied)
    # Only one and the same objective makes losses comparable.
    if not plain and any(p.measured == "loss" for p in probed):
        why = "their objectives differ, and the task has no score beside its loss"
        return replace(advice, findings=(*advice.findings, note("probe", "the probe cannot be read", why))), tuple(
            probed
        )
    probed.sort(key=lambda p: (-p.score, p.loss if plain else 0.0, tied.index(p.entry)))
    said = "; ".join(f"{p.entry.plan.method.title} {p.text}" for p in probed)
    finding = note(
        "probe",
        f"{steps} steps on real rows: {said}",
        "few steps say little of long runs, so only the tie was put in order",
    )
    moved = [_with_note(p, steps) for p in probed]
    rest = [e for e in advice.ranked if all(e is not t for t in tied)]
    return replace(advice, ranked=(*moved, *rest), findings=(*advice.findings, finding)), tuple(probed)


def _check(advice: Advice, steps: int, candidates: int) -> None:
    faults = []
    if steps < 1:
        faults.append(error("probe-steps", f"`steps` is {steps}", "at least one step is trained", "set `steps=50`"))
    if candidates < 2:
        faults.append(
            error("probe-candidates", f"`candidates` is {candidates}", "a tie is of two or more", "set `candidates=3`")
        )
    raise_all(faults)
    if not advice.ranked:
        raise MissingError(error("nothing-fits", "a probe of advice without a fitting plan", "there is nothing to train", "look at `advice.rejected`"))  # fmt: skip


def _rows(advice: Advice, train: Any, held_out: Any) -> tuple[Any, Any]:
    """Training and held-out rows as datasets."""
    from tunekit.data.read import read

    if train is None:
        if advice.workload.data_source is None:
            raise MissingError(error("probe-data", "a probe without rows", "plans are trained on real rows", "pass `train_dataset=...`"))  # fmt: skip
        train = advice.workload.data_source
    rows = read(train)
    evaluated = read(held_out).train if held_out is not None else rows.eval
    if evaluated is not None:
        return rows.train, _at_most(evaluated)
    order = random.Random(0).sample(range(len(rows.train)), len(rows.train))
    kept = min(max(1, round(_HELD_OUT * len(order))), _MOST_HELD_OUT)
    if len(order) < 10:
        raise InvalidError(error("probe-rows", f"a probe with {len(order)} rows", "some are held out, the others train", "give ten rows or more"))  # fmt: skip
    return rows.train.select(sorted(order[kept:])), rows.train.select(sorted(order[:kept]))


def _at_most(rows: Any) -> Any:
    return rows.select(range(min(len(rows), _MOST_HELD_OUT)))


def _probed(entry: Entry, train: Any, held_out: Any, steps: int, arguments: dict[str, Any]) -> Probed:
    """One plan trained for so many steps and scored."""
    from tunekit.assemble import trainer

    with TemporaryDirectory() as folder:
        plan = entry.plan.replace(
            max_steps=steps, output_dir=str(Path(folder) / "probe"), callbacks=(), early_stopping_patience=None
        )
        quiet = {
            "save_strategy": "no",
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "report_to": "none",
            **arguments,
        }
        made = trainer(plan, train_dataset=train, eval_dataset=held_out, **quiet)
        start = time.perf_counter()
        made.train()
        seconds = time.perf_counter() - start
        scores = made.evaluate()
    measured = next((name for name in _SCORES if f"eval_{name}" in scores), "loss")
    value = float(scores[f"eval_{measured}"])
    score = -value if measured == "loss" else value
    return Probed(entry=entry, score=score, measured=measured, loss=float(scores["eval_loss"]), seconds=seconds)


def _with_note(probed: Probed, steps: int) -> Entry:
    """The entry with what was measured of it."""
    found: Sequence[Finding] = probed.entry.findings
    finding = note("probe", f"after {steps} steps: {probed.text}", "measured here, on held-out rows")
    return replace(probed.entry, findings=(*found, finding))
