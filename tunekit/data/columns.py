"""Columns: which column of the data is which of ours, and what task the columns speak of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tunekit.data.features import feature_kind, looks_like_classes
from tunekit.data.synonyms import (
    CHOICE_LABEL,
    CHOICE_TEXT,
    MORE_INPUT,
    PAIRS,
    PROMPT_COMPLETION,
    SINGLES,
    SOURCE_TARGET,
)  # fmt: skip
from tunekit.errors import InvalidError, MissingError, UnsupportedError, raise_all
from tunekit.finding import Finding, error, nearest
from tunekit.task import TASKS, Task

if TYPE_CHECKING:
    import datasets

EXTRA: Mapping[str, tuple[str, ...]] = {"causal-lm": ("input",), "seq2seq": ("input",)}
"""Columns of ours that a row may have beside its set: `input` completes the prompt or source."""

_KINDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "text_pair": ("text",),
    "source": ("text",),
    "target": ("text",),
    "prompt": ("text", "messages"),
    "completion": ("text", "messages"),
    "input": ("text",),
    "messages": ("messages",),
    "tokens": ("texts",),
    "tags": ("texts", "ints"),
    "context": ("text",),
    "question": ("text",),
    "answers": ("answers", "text", "texts"),
    "choices": ("texts", "choices"),
    "label": ("text", "int", "float", "bool", "texts", "ints", "floats"),
}
"""What kind of value each of our columns may hold."""


def resolve(dataset: datasets.Dataset, columns: Mapping[str, str] | None, task: Task | None) -> dict[str, str]:
    """Our column names to the data's, for one of the task's sets of columns.

    What the user names in `columns` wins; the rest is found by common names (`premise` and `hypothesis`, `document`
    and `summary`, `instruction` with `input` and `response`, `ner_tags`, ...).

    Args:
        dataset: The rows.
        columns: Our name to the data's name, for as many as do not speak for themselves.
        task: What the rows are for; None: inferred from the columns.

    Raises:
        MissingError: `column-missing`, naming what is there.
        InvalidError: `column-unknown` (no name of ours), `column-kind` (values of another kind), `column-ambiguous`.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]})
        >>> resolve(rows, None, Task.named("sequence-classification"))
        {'text': 'sentence', 'label': 'label'}
    """
    task = task or infer_task(dataset, columns, tuple(t.name for t in TASKS))
    given = dict(columns or {})
    raise_all(_given_faults(given, task))
    _check_given(dataset, given)
    found = _found(dataset, given, task)
    if found is None:
        raise MissingError(_missing_set(dataset, given, task))
    raise_all(_kind_faults(dataset, found))
    return found


def infer_task(dataset: datasets.Dataset, columns: Mapping[str, str] | None, model_tasks: tuple[str, ...]) -> Task:
    """The one task that the columns speak of and the model can learn.

    Plain `text` speaks of language modelling only where nothing else is there; a prompt with its completion is
    `seq2seq` for a model that has an encoder and a decoder; choices make a labelled row multiple choice.

    Raises:
        InvalidError: `task-ambiguous`, listing the choices; `task-unclear`, where the columns fit nothing.
        UnsupportedError: `task-architecture`, where they fit a task that the model has no head for.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"tokens": [["Oslo"]], "tags": [["B-location"]]})
        >>> infer_task(rows, None, ("sequence-classification", "token-classification")).name
        'token-classification'
    """
    given = dict(columns or {})
    _check_given(dataset, given)
    fitting = [task for task in TASKS if _speaks_of(dataset, given, task)]
    able = _without_dominated([t for t in fitting if t.name in model_tasks])
    if len(able) == 1:
        return able[0]
    there = f"columns {', '.join(f'`{c}`' for c in dataset.column_names)}"
    if able:
        names = [t.name for t in able]
        raise InvalidError(
            error("task-ambiguous", there, f"they fit {_either(names)}", f"say which: {' or '.join(f'`task={n!r}`' for n in names)}")
        )  # fmt: skip
    if fitting:
        names = [t.name for t in _without_dominated(fitting)]
        raise UnsupportedError(
            error("task-architecture", there, f"they fit {_either(names)}, and the model knows {_either(list(model_tasks)) or 'no task'}", "choose another model, or name the columns with `columns={...}`")
        )  # fmt: skip
    wanted = "; ".join(
        f"{t.name}: {' or '.join('+'.join(s) for s in t.columns)}" for t in TASKS if t.name in model_tasks
    )
    raise InvalidError(
        error("task-unclear", there, "they fit no task that the model can learn", f"name them with `columns={{our name: your name}}`; {wanted}")
    )  # fmt: skip


def _either(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1] if len(names) > 1 else "".join(names)


def _speaks_of(dataset: datasets.Dataset, given: dict[str, str], task: Task) -> bool:
    """Whether names and kinds of the columns fit the task."""
    if _given_faults(given, task):
        return False
    try:
        found = _found(dataset, given, task)
    except InvalidError:
        return True  # several columns could be one of ours: the task is clear, `resolve` will ask for the column
    if found is None or _kind_faults(dataset, found):
        return False
    by_hand = "label" in given
    return (
        "label" not in found or by_hand or task.name == "multiple-choice" or looks_like_classes(dataset, found["label"])
    )


def _without_dominated(fitting: list[Task]) -> list[Task]:
    """Without the tasks that a more telling one explains."""
    names = {t.name for t in fitting}
    dropped = set()
    if "multiple-choice" in names:
        dropped |= {"sequence-classification", "causal-lm", "seq2seq"}
    if names & {"token-classification", "question-answering"}:
        dropped |= {"causal-lm", "seq2seq"}
    if names & {"sequence-classification", "seq2seq"}:
        dropped.add("causal-lm")
    return [t for t in fitting if t.name not in dropped]


# ------------------------------------------------------------------------------------------------------------ matching
def _found(dataset: datasets.Dataset, given: dict[str, str], task: Task) -> dict[str, str] | None:
    """The first of the task's sets of columns that can be filled with all that is given; the fuller set first."""
    taken = set(given.values())
    free = {c.lower().replace("-", "_").replace(" ", "_"): c for c in dataset.column_names if c not in taken}
    candidates = [c for c in _candidates(dataset, given, task, free) if given.keys() <= c.keys()]
    clean = (c for c in candidates if not _kind_faults(dataset, c))
    return next(clean, candidates[0] if candidates else None)


def _candidates(
    dataset: datasets.Dataset, given: dict[str, str], task: Task, free: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """Every way to fill one of the task's sets, the most telling first."""
    match task.name:
        case "sequence-classification":
            yield from _labelled(dataset, given, free)
        case "causal-lm":
            yield from _filled(dataset, given, ("messages",), free)
            yield from _paired(dataset, given, ("prompt", "completion"), (*PROMPT_COMPLETION, *SOURCE_TARGET), free)
            if not {"prompt", "completion", "messages", "input"} & set(given):
                yield from _filled(dataset, given, ("text",), free)
        case "seq2seq":
            yield from _paired(dataset, given, ("source", "target"), (*SOURCE_TARGET, *PROMPT_COMPLETION), free)
        case "multiple-choice":
            yield from _filled(
                dataset, given, ("text", "choices", "label"), free, {"text": CHOICE_TEXT, "label": CHOICE_LABEL}
            )
        case _:
            yield from _filled(dataset, given, task.columns[0], free)


def _labelled(dataset: datasets.Dataset, given: dict[str, str], free: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Two sentences with a label before one sentence with a label."""
    for pair in _paired(dataset, given, ("text", "text_pair"), PAIRS, free):
        rest = {k: v for k, v in free.items() if v not in pair.values()}
        yield from _filled(dataset, {**given, **pair}, ("text", "text_pair", "label"), rest)
    if "text_pair" not in given:
        yield from _filled(dataset, given, ("text", "label"), free)


def _paired(
    dataset: datasets.Dataset, given: dict[str, str], ours: tuple[str, str], pairs: tuple[tuple[str, str], ...], free: Mapping[str, str]
) -> Iterator[dict[str, str]]:  # fmt: skip
    """Two columns that are known by their pairs of names; one or both may be given by hand."""
    for pair in pairs:
        names = {o: given.get(o) or free.get(theirs, "") for o, theirs in zip(ours, pair, strict=True)}
        if all(names.values()) and len(set(names.values())) == 2 and not _kind_faults(dataset, names):
            yield {**names, **_more_input(dataset, given, names, free)}
            return


def _more_input(
    dataset: datasets.Dataset, given: dict[str, str], names: Mapping[str, str], free: Mapping[str, str]
) -> dict[str, str]:
    """The column that completes an instruction, where there is one."""
    if "input" in given:
        return {"input": given["input"]}
    if "text_pair" in names or "instruction" not in (n.lower() for n in names.values()):
        return {}
    more = [free[n] for n in MORE_INPUT if n in free and not _kind_faults(dataset, {"input": free[n]})]
    return {"input": more[0]} if more else {}


def _filled(
    dataset: datasets.Dataset,
    given: dict[str, str],
    ours: tuple[str, ...],
    free: Mapping[str, str],
    synonyms: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[dict[str, str]]:
    """Columns that are known each by its own name."""
    found: dict[str, str] = {}
    for name in ours:
        column = given.get(name) or _single(
            dataset, name, {**SINGLES, **(synonyms or {})}.get(name, (name,)), free, found
        )
        if column is None:
            return
        found[name] = column
    yield found


def _single(
    dataset: datasets.Dataset, ours: str, names: tuple[str, ...], free: Mapping[str, str], taken: Mapping[str, str]
) -> str | None:
    """The column of that meaning: our own name, or the only other one; several are for the user to tell apart."""
    there = [free[n.lower()] for n in names if n.lower() in free and free[n.lower()] not in taken.values()]
    fitting = list(dict.fromkeys(c for c in there if not _kind_faults(dataset, {ours: c})))
    if len(fitting) > 1 and fitting[0].lower() not in names[:2]:
        listed = ", ".join(f"`{c}`" for c in fitting)
        raise InvalidError(
            error("column-ambiguous", f"columns {listed}", f"each could be the `{ours}`", f"say which: `columns={{{ours!r}: {fitting[0]!r}}}`")
        )  # fmt: skip
    return fitting[0] if fitting else (there[0] if there else None)


# -------------------------------------------------------------------------------------------------------------- faults
def _known(task: Task) -> list[str]:
    """Every column name of ours that the task may use."""
    return list(dict.fromkeys([c for s in task.columns for c in s] + list(EXTRA.get(task.name, ()))))


def _given_faults(given: Mapping[str, str], task: Task) -> list[Finding]:
    known = _known(task)
    return [
        error(
            "column-unknown", f"`columns` names `{ours}`", f"{task.name} has no such column", nearest(str(ours), known)
        )
        for ours in given
        if ours not in known
    ]


def _check_given(dataset: datasets.Dataset, given: Mapping[str, str]) -> None:
    """Refuses names that no task knows and columns that the data does not have, all at once."""
    known = list(dict.fromkeys(c for task in TASKS for c in _known(task)))
    raise_all(
        error("column-unknown", f"`columns` names `{ours}`", "no task has such a column", nearest(str(ours), known))
        for ours in given
        if ours not in known
    )
    missing = [c for c in given.values() if c not in dataset.column_names]
    if missing:
        raise MissingError(*(_missing_column(dataset, given, c) for c in missing))


def _kind_faults(dataset: datasets.Dataset, found: Mapping[str, Any]) -> list[Finding]:
    faults = []
    for ours, theirs in found.items():
        kind = feature_kind(dataset, theirs)
        if kind not in _KINDS[ours]:
            wanted = _either([_IN_WORDS[k] for k in _KINDS[ours]])
            faults.append(
                error("column-kind", f"column `{theirs}` as `{ours}`", f"it holds {_IN_WORDS.get(kind, kind)}, and `{ours}` is {wanted}", f"name another one: `columns={{{ours!r}: ...}}`")
            )  # fmt: skip
    return faults


_IN_WORDS = {
    "text": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "texts": "a list of texts",
    "ints": "a list of whole numbers",
    "floats": "a list of numbers",
    "messages": "a list of messages",
    "answers": "answers with `text` and `answer_start`",
    "choices": "choices with `text` and `label`",
    "null": "nothing but nulls",
    "other": "something else",
}


def _missing_column(dataset: datasets.Dataset, given: Mapping[str, str], column: str) -> Finding:
    ours = next(k for k, v in given.items() if v == column)
    there = ", ".join(f"`{c}`" for c in dataset.column_names)
    close = nearest(str(column), list(dataset.column_names))
    return error(
        "column-missing", f"`columns` names `{column}` as `{ours}`", f"the data has {there}",
        close if close.startswith("did") else f"name one of them: `columns={{{ours!r}: {dataset.column_names[0]!r}}}`",
    )  # fmt: skip


def _missing_set(dataset: datasets.Dataset, given: Mapping[str, str], task: Task) -> Finding:
    sets = " or ".join("+".join(f"`{c}`" for c in s) for s in task.columns)
    there = ", ".join(f"`{c}`" for c in dataset.column_names)
    open_names = [c for c in task.columns[0] if c not in given]
    example = ", ".join(f"{c!r}: '...'" for c in open_names)
    return error(
        "column-missing",
        f"columns {there}",
        f"{task.name} needs {sets}",
        f"say which they are: `columns={{{example}}}`",
    )
