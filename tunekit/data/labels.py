"""Labels: what a label column holds, the classes' names, and labels as the numbers that a model's head takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.features import class_names, feature_kind, shared, values
from tunekit.errors import InvalidError
from tunekit.finding import Finding, error
from tunekit.task import PROBLEM_TYPES, ProblemType, Task

if TYPE_CHECKING:
    import datasets

IGNORE = -100
"""The label that transformers' losses leave out; allowed among tags."""
_FITTING: Mapping[str, tuple[str, ...]] = {
    "single_label_classification": ("text", "int", "bool"),
    "multi_label_classification": ("texts", "ints", "floats"),
    "regression": ("float", "floats", "int", "ints"),
}
_IN_WORDS = {
    "text": "texts", "int": "whole numbers", "bool": "true and false", "float": "numbers with a fraction",
    "texts": "lists of texts", "ints": "lists of whole numbers", "floats": "lists of numbers",
}  # fmt: skip


def problem_type(
    dataset: datasets.Dataset, task: Task, columns: Mapping[str, str], given: str | None = None
) -> ProblemType | None:
    """What kind of sequence classification the labels ask for; None for every other task.

    One class a row is `single_label_classification`; a list of classes, or of a 0 or 1 for each class, is
    `multi_label_classification`; numbers with a fraction are `regression`.

    Args:
        dataset: The rows.
        task: What they are for.
        columns: Our column names to the data's.
        given: What the user demands; checked against the labels.

    Raises:
        InvalidError: `problem-type`.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0.5, 1.5]})
        >>> problem_type(rows, Task.named("sequence-classification"), {"text": "text", "label": "label"})
        'regression'
    """
    if task.name != "sequence-classification" or "label" not in columns:
        return None
    kind = feature_kind(dataset, columns["label"])
    if given is not None:
        if given not in PROBLEM_TYPES or kind not in _FITTING[given]:
            raise InvalidError(
                error(
                    "problem-type", f"`problem_type` {given!r} of labels that are {_IN_WORDS.get(kind, kind)}",
                    "they do not go together" if given in PROBLEM_TYPES else f"it is one of {', '.join(PROBLEM_TYPES)}",
                    "leave `problem_type` out to have it read from the labels",
                )
            )  # fmt: skip
        return next(p for p in PROBLEM_TYPES if p == given)
    if kind == "float" or (kind == "floats" and not _is_multi_hot(shared(dataset, columns["label"]))):
        return "regression"
    return "multi_label_classification" if kind in ("texts", "ints", "floats") else "single_label_classification"


def label_names(
    dataset: datasets.Dataset,
    task: Task,
    columns: Mapping[str, str],
    given: Sequence[str] = (),
    problem_type: str | None = None,
) -> tuple[str, ...]:
    """The classes' names in the order of their ids; empty for regression and where a task has no classes.

    What is given wins; then the names of a `ClassLabel`; texts sorted; whole numbers are ids, named by a column such as
    `label_name` or by themselves. Sparse whole numbers (0 and 4; 10, 20 and 30) are names, not ids.

    Read them once, from the training rows, and hand them to every `encode`.

    Args:
        dataset: The training rows.
        task: What they are for.
        columns: Our column names to the data's.
        given: Names by hand; every label must then be one of them, or an id below their number.
        problem_type: What the user demands; None: read from the labels.

    Raises:
        InvalidError: `labels-range`, `labels-missing`, `labels-names`, `problem-type`.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["spam", "ham"]})
        >>> label_names(rows, Task.named("sequence-classification"), {"text": "text", "label": "label"})
        ('ham', 'spam')
    """
    column = columns.get({"sequence-classification": "label", "token-classification": "tags"}.get(task.name, ""))
    if column is None or _problem(dataset, task, columns, problem_type) == "regression":
        return ()
    if len(set(given)) < len(given):
        raise InvalidError(
            error("labels-names", f"`label_names` {tuple(given)}", "a name occurs twice", "give every class its own")
        )
    rows = shared(dataset, column)
    known = tuple(given) or class_names(dataset, column)
    names = known or _names_of(dataset, column, rows)
    check_labels(rows, names, column)
    if not known and not isinstance(rows[0], list) and len(set(rows)) < 2:
        raise InvalidError(
            error("labels-single", f"label {rows[0]!r} in every row of column `{column}`", "there is nothing to tell apart", "pass rows of at least two classes, or name all classes with `label_names`")
        )  # fmt: skip
    return names


def num_labels(
    dataset: datasets.Dataset, columns: Mapping[str, str], names: Sequence[str], problem_type: str | None
) -> int | None:
    """How many outputs the head needs: classes, tags or regression targets; None where the task has no such number.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"text": ["a"], "label": [[0.5, 1.5, 2.0]]})
        >>> num_labels(rows, {"text": "text", "label": "label"}, (), "regression")
        3
    """
    if problem_type == "regression":
        first = values(dataset, columns["label"], 1)[0]
        return len(first) if isinstance(first, list) else 1
    return len(names) or None


def _problem(dataset: datasets.Dataset, task: Task, columns: Mapping[str, str], given: str | None) -> str | None:
    return problem_type(dataset, task, columns, given)


# --------------------------------------------------------------------------------------------------------------- names
def _names_of(dataset: datasets.Dataset, column: str, rows: list[Any]) -> tuple[str, ...]:
    """Names from the labels themselves."""
    if _is_multi_hot(rows):
        return tuple(str(i) for i in range(len(rows[0])))
    distinct = {v for v in _flat(rows) if v is not None}
    if distinct and all(isinstance(v, bool) for v in distinct):
        return ("False", "True")
    if not all(isinstance(v, int) for v in distinct):
        return tuple(sorted(map(str, distinct)))
    distinct = {v for v in distinct if v >= 0}
    if not distinct:
        return ()
    if max(distinct) + 1 > 2 * len(distinct) and max(distinct) > 1:
        return tuple(str(v) for v in sorted(distinct))
    beside = _names_beside(dataset, column, rows)
    return tuple(beside.get(i, str(i)) for i in range(max(max(distinct) + 1, 2)))


def _names_beside(dataset: datasets.Dataset, column: str, rows: list[Any]) -> dict[int, str]:
    """Names from a column of texts beside the ids, where each id has one name and each name one id."""
    for other in (f"{column}_name", f"{column}_text", "label_name", "label_text"):
        if other in dataset.column_names and other != column and feature_kind(dataset, other) == "text":
            pairs = set(zip(rows, shared(dataset, other), strict=True)) if not isinstance(rows[0], list) else set()
            names = {i: name for i, name in pairs if i is not None and name}
            if len(pairs) == len(names) == len(set(names.values())) > 0:
                return names
    return {}


def _is_multi_hot(rows: list[Any]) -> bool:
    """Whether every row is a list of the same length, of zeros and ones."""
    if not rows or not isinstance(rows[0], list) or len(rows[0]) < 2:
        return False
    width = len(rows[0])
    return all(isinstance(r, list) and len(r) == width and all(v in (0, 1) for v in r) for r in rows)


def _flat(rows: Iterable[Any]) -> Iterable[Any]:
    for row in rows:
        if isinstance(row, list):
            yield from row
        else:
            yield row


# ----------------------------------------------------------------------------------------------------------- to numbers
def check_labels(rows: list[Any], names: Sequence[str], column: str) -> None:
    """Refuses labels that are missing or that no class has.

    Raises:
        InvalidError: `labels-missing` and `labels-range`, each with the number of rows and the first.
    """
    faults: list[Finding] = []
    absent = [i for i, row in enumerate(rows) if row is None or (isinstance(row, list) and None in row)]
    if absent:
        faults.append(
            error("labels-missing", f"{_count(absent)} of column `{column}` without a label", "the loss needs one in every row", "drop these rows")
        )  # fmt: skip
    ids = _Ids(names)
    hot = _is_multi_hot(rows) and len(rows[0]) == len(names)
    wrong = (
        []
        if hot
        else [i for i, row in enumerate(rows) if any(ids.get(v) is None for v in _flat([row]) if v is not None)]
    )
    if wrong:
        bad = next(v for v in _flat([rows[wrong[0]]]) if v is not None and ids.get(v) is None)
        faults.append(_out_of_range(bad, wrong, names, column))
    if faults:
        raise InvalidError(*faults)


def _count(rows: list[int]) -> str:
    return f"{len(rows)} row{'s' if len(rows) > 1 else ''} (first: {rows[0]})"


def _out_of_range(value: Any, rows: list[int], names: Sequence[str], column: str) -> Finding:
    listed = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    why = f"there are {len(names)} classes: {listed}" if names else "ids start at 0"
    hint = " (-1 often means that there is no label: drop these rows)" if value == -1 else ""
    return error(
        "labels-range", f"label {value!r} in {_count(rows)} of column `{column}`", why,
        f"correct the labels, or name every class with `label_names`{hint}",
    )  # fmt: skip


class _Ids:
    """From a label to its id: by name, or the id itself where the names are not numbers of their own."""

    def __init__(self, names: Sequence[str]) -> None:
        self.by_name = {name: i for i, name in enumerate(names)}
        plain = all(name == str(i) for i, name in enumerate(names))
        self.numbers_are_names = not plain and bool(names) and all(_is_whole(name) for name in names)
        self.size = len(names)

    def get(self, value: Any) -> int | None:
        """The id, or None where no class is meant."""
        if isinstance(value, bool) and str(value) in self.by_name:
            return self.by_name[str(value)]
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            if value == IGNORE:
                return IGNORE
            if self.numbers_are_names:
                return self.by_name.get(str(int(value)))
            return int(value) if 0 <= value < self.size else None
        return self.by_name.get(value) if isinstance(value, str) else None


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit()


def encode_labels(rows: list[Any], names: Sequence[str], problem_type: str | None, column: str = "label") -> list[Any]:
    """Labels as a sequence-classification head takes them: ids, rows of 0.0 and 1.0, or numbers.

    Raises:
        InvalidError: `labels-range`, `labels-missing`.

    Example:
        >>> encode_labels(["b", "a"], ("a", "b"), "single_label_classification")
        [1, 0]
        >>> encode_labels([["b"], []], ("a", "b"), "multi_label_classification")
        [[0.0, 1.0], [0.0, 0.0]]
    """
    check_labels(rows, names, column) if problem_type != "regression" else _check_numbers(rows, column)
    if problem_type == "regression":
        return [[float(v) for v in row] if isinstance(row, list) else float(row) for row in rows]
    ids = _Ids(names)
    if problem_type != "multi_label_classification":
        return [ids.get(row) for row in rows]
    return [_hot(row, ids) for row in rows]


def _hot(row: list[Any], ids: _Ids) -> list[float]:
    """One 0.0 or 1.0 for each class."""
    if len(row) == ids.size and all(v in (0, 1) and not isinstance(v, str) for v in row):
        return [float(v) for v in row]
    present = {ids.get(v) for v in row}
    return [float(i in present) for i in range(ids.size)]


def _check_numbers(rows: list[Any], column: str) -> None:
    absent = [i for i, row in enumerate(rows) if any(v is None or v != v for v in _flat([row]))]
    if absent:
        raise InvalidError(
            error("labels-missing", f"{_count(absent)} of column `{column}` without a number", "the loss needs one in every row", "drop these rows")
        )  # fmt: skip


def encode_tags(rows: list[list[Any]], names: Sequence[str], column: str = "tags") -> list[list[int]]:
    """Tags as ids; -100 stays.

    Raises:
        InvalidError: `labels-range`, `labels-missing`.

    Example:
        >>> encode_tags([["O", "B-x"]], ("B-x", "O"))
        [[1, 0]]
    """
    check_labels(rows, names, column)
    ids = _Ids(names)
    return [[ids.get(tag) for tag in row] for row in rows]  # type: ignore[misc]
