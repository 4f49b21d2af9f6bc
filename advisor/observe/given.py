"""Facts of the data that are told instead of read, and what contradicts itself in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal

from tunekit.errors import raise_all
from tunekit.finding import Finding, error, note
from tunekit.task import ProblemType, Task
from tunekit.workload import DataFacts, ModelFacts

_SPREAD = 0.5
"""Standard deviation of the logarithm of row lengths. At 0.5 the longest of eight rows is 1.8 times the mean; measured on
seven public sets of instructions, dialogues, abstracts, reviews and intents it is 1.4 to 2.1."""
_SAMPLE = 200
_MEAN_TOKENS = {"causal-lm": 256, "seq2seq": 256, "question-answering": 192}
"""Assumed mean row length in tokens where nobody said, by task; 64 for the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """Facts by hand, as `advise` takes them; None where nothing was said."""

    num_examples: int | None = None
    num_labels: int | None = None
    mean_tokens: float | None = None
    max_length: int | None = None
    label_names: tuple[str, ...] | None = None
    teacher: str | None = None
    adapters: tuple[str, ...] | None = None
    unlabelled: int | None = None
    own_loss: float | Literal["measure"] | None = None

    @staticmethod
    def of(
        num_examples: int | None, num_labels: int | None, mean_tokens: float | None, max_length: int | None,
        label_names: Sequence[str] | None, teacher: str | Path | None, adapters: Sequence[str] | None, unlabelled: int | None,
        own_loss: float | str | None = None,
    ) -> Given:  # fmt: skip
        """The facts, checked one by one.

        Raises:
            InvalidError: every value that is of the wrong kind or out of range.
        """
        faults = _value_faults(num_examples, num_labels, mean_tokens, max_length, label_names, adapters, unlabelled)
        raise_all([*faults, *_loss_faults(own_loss)])
        return Given(
            num_examples=num_examples, num_labels=num_labels, mean_tokens=mean_tokens, max_length=max_length,
            label_names=None if label_names is None else tuple(str(n) for n in label_names),
            teacher=None if teacher is None else str(teacher),
            adapters=None if adapters is None else tuple(str(a) for a in adapters), unlabelled=unlabelled,
            own_loss=own_loss,  # type: ignore[arg-type]
        )  # fmt: skip


def _value_faults(
    num_examples: object, num_labels: object, mean_tokens: object, max_length: object, label_names: object, adapters: object,
    unlabelled: object,
) -> list[Finding]:  # fmt: skip
    whole = {
        "num_examples": (num_examples, 0),
        "num_labels": (num_labels, 1),
        "max_length": (max_length, 1),
        "unlabelled": (unlabelled, 0),
    }
    faults = [
        error(f"given-{name.replace('_', '-')}", f"`{name}` is {value!r}", f"it must be a whole number of at least {low}", f"set `{name}={max(low, 1)}` or more")
        for name, (value, low) in whole.items()
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= low)
    ]  # fmt: skip
    numeric = isinstance(mean_tokens, int | float) and not isinstance(mean_tokens, bool)
    if mean_tokens is not None and not (numeric and 0 < mean_tokens < math.inf):  # type: ignore[operator]
        faults.append(
            error(
                "given-mean-tokens",
                f"`mean_tokens` is {mean_tokens!r}",
                "it must be a number above 0",
                "set `mean_tokens=128`",
            )
        )
    for name, value in (("label_names", label_names), ("adapters", adapters)):
        if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
            faults.append(
                error(
                    f"given-{name.replace('_', '-')}",
                    f"`{name}` is {value!r}",
                    "it must be a list of texts",
                    f'write `{name}=["..."]`',
                )
            )
    return faults


def _loss_faults(own_loss: object) -> list[Finding]:
    if own_loss is None or own_loss == "measure":
        return []
    numeric = isinstance(own_loss, int | float) and not isinstance(own_loss, bool)
    if numeric and 0 <= own_loss < math.inf:  # type: ignore[operator]
        return []
    why = "it is a number of nats a token, or asks for a measurement"
    return [error("given-own-loss", f"`own_loss` is {own_loss!r}", why, 'set `own_loss=3.2` or `own_loss="measure"`')]


def contradictions(given: Given, task: Task, model: ModelFacts) -> list[Finding]:
    """What cannot be true at once in the facts, the task and the model."""
    faults = []
    names, count = given.label_names, given.num_labels
    if names is not None and count is not None and len(names) != count:
        faults.append(
            error("given-labels-count", f"{len(names)} `label_names` with `num_labels={count}`", "each class has one name", f"set `num_labels={len(names)}`, or leave it out")
        )  # fmt: skip
    if names is not None and len(set(names)) != len(names):
        faults.append(
            error(
                "given-labels-twice",
                "`label_names` names a class twice",
                "each class has a name of its own",
                "remove the repeated one",
            )
        )
    if names is not None and len(names) == 1 and task.name == "sequence-classification":
        faults.append(
            error("given-labels-one", "one class in `label_names`", "there is nothing to tell apart", "name every class, or pass `num_labels=1` for regression")
        )  # fmt: skip
    if given.teacher is not None and given.teacher == model.name:
        faults.append(
            error("given-teacher-itself", f"`teacher={given.teacher!r}`", "that is the model itself, which it would learn nothing from", "name a larger model of the task, or leave it out")
        )  # fmt: skip
    if given.adapters is not None and len(set(given.adapters)) != len(given.adapters):
        faults.append(error("given-adapters-twice", "`adapters` names one twice", "a fusion of an adapter with itself learns nothing", "name each once"))  # fmt: skip
    if (names or count is not None) and task.name not in ("sequence-classification", "token-classification"):
        faults.append(
            error("given-labels-task", f"`{'num_labels' if count is not None else 'label_names'}` with task {task}", "it has no classes", "leave it out, or set `task` to a classification")
        )  # fmt: skip
    if given.max_length is not None and model.context_length is not None and given.max_length > model.context_length:
        faults.append(
            error("max-length-context", f"`max_length={given.max_length}`", f"the model's positions end at {model.context_length}", f"set `max_length={model.context_length}` or less")
        )  # fmt: skip
    return faults


def facts_by_hand(given: Given, task: Task) -> tuple[DataFacts, tuple[Finding, ...]]:
    """DataFacts from what was told alone, and notes on what had to be assumed.

    Raises:
        InvalidError: `data-none` where not even the number of rows is known; `given-labels-needed`.
    """
    faults = []
    if given.num_examples is None:
        faults.append(
            error("data-none", "neither `dataset` nor `num_examples`", "the advice depends on how much data there is", "pass `dataset=...`, or `num_examples=1000`")
        )  # fmt: skip
    classes = given.num_labels or len(given.label_names or ()) or None
    if classes is None and task.name in ("sequence-classification", "token-classification"):
        faults.append(
            error(
                "given-labels-needed",
                f"task {task} without classes",
                "their number sizes the head",
                "pass `num_labels=...` or `label_names=[...]`",
            )
        )
    if given.own_loss == "measure":
        seen, why = '`own_loss="measure"` without `dataset`', "there are no rows to read"
        faults.append(error("given-own-loss-rows", seen, why, "pass `dataset=...`, or the loss as a number"))
    raise_all(faults)
    assumed = given.mean_tokens is None
    mean = given.mean_tokens or min(_MEAN_TOKENS.get(task.name, 64), given.max_length or 10**9)
    lengths = spread_lengths(mean, given.max_length)
    findings = []
    if assumed:
        findings.append(
            note("lengths-assumed", f"rows of {mean:g} tokens on average were assumed", "nobody said how long they are, and memory and time depend on it", "pass `mean_tokens=...` or the dataset")
        )  # fmt: skip
    data = DataFacts(
        num_examples=given.num_examples or 0,
        lengths=lengths,
        target_lengths=lengths if task.name == "seq2seq" else (),
        supervised_tokens=float(mean) if task.name in ("causal-lm", "seq2seq") else None,
        num_labels=classes,
        label_names=given.label_names or (),
        problem_type=_problem_type(task, classes),
        num_choices=4 if task.name == "multiple-choice" else None,
    )
    return with_given(data, given), tuple(findings)


def _problem_type(task: Task, classes: int | None) -> ProblemType | None:
    if task.name != "sequence-classification":
        return None
    return "regression" if classes == 1 else "single_label_classification"


def with_given(data: DataFacts, given: Given) -> DataFacts:
    """The facts with what was told put over what was read."""
    changes: dict[str, object] = {}
    if given.num_examples is not None:
        changes["num_examples"] = given.num_examples
    if given.num_labels is not None:
        changes["num_labels"] = given.num_labels
    if given.label_names is not None:
        changes |= {"label_names": given.label_names, "num_labels": len(given.label_names)}
    if given.mean_tokens is not None:
        changes["lengths"] = spread_lengths(given.mean_tokens, given.max_length)
    if given.teacher is not None:
        changes["teacher"] = given.teacher
    if given.adapters is not None:
        changes["adapters"] = given.adapters
    if given.unlabelled is not None:
        changes["num_unlabelled"] = given.unlabelled
    if isinstance(given.own_loss, int | float):
        changes["own_loss"] = float(given.own_loss)
    return replace(data, **changes)  # type: ignore[arg-type]


def spread_lengths(mean_tokens: float, max_length: int | None = None) -> tuple[int, ...]:
    """A sample of row lengths in tokens around a mean, spread as lengths of texts are (log-normal), ascending.

    Example:
        >>> lengths = spread_lengths(100)
        >>> round(sum(lengths) / len(lengths)), lengths[-1] > 250
        (100, True)
        >>> spread_lengths(100, max_length=128)[-1]
        128
    """
    normal = NormalDist()
    centre = math.log(mean_tokens) - _SPREAD**2 / 2
    drawn = (math.exp(centre + _SPREAD * normal.inv_cdf((i + 0.5) / _SAMPLE)) for i in range(_SAMPLE))
    return tuple(max(1, min(round(n), max_length or 10**9)) for n in drawn)
