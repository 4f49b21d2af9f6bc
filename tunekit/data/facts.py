"""Facts: what training data is like, read from its rows: sizes, lengths, classes, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.encode import encoder_of, renaming
from tunekit.data.features import in_batches, values
from tunekit.data.labels import IGNORE, encode_labels, encode_tags, label_names, num_labels
from tunekit.data.labels import problem_type as read_problem
from tunekit.data.read import Rows
from tunekit.data.tally import Tally
from tunekit.finding import Finding, note, warning
from tunekit.task import Task
from tunekit.workload import DataFacts

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

SAMPLE_ROWS = 1_000
"""Rows whose lengths are measured."""
CHARACTERS_PER_TOKEN = 4
"""Of English text under the vocabularies of today's models; used only where there is no tokenizer."""
FINGERPRINT_ROWS = 100_000
"""Rows that a fingerprint reads; of more rows it reads as many, evenly spread, and the number of all."""
_INPUTS = ("text", "text_pair", "tokens", "context", "question", "choices", "source", "prompt", "input", "messages")
_TARGETS = ("target", "completion")


def data_facts(
    rows: Rows,
    task: Task,
    columns: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    given: Sequence[str] = (),
    *,
    problem_type: str | None = None,
    template: str | None = None,
) -> tuple[DataFacts, tuple[Finding, ...]]:
    """What is known of the rows, and what stands out in them.

    Lengths are those of the very encoding that trains, uncut, over 1,000 rows drawn with a fixed seed. The same rows give
    the same facts in every process.

    Args:
        rows: The rows.
        task: What they are for.
        columns: Our column names to the data's, from `resolve`.
        tokenizer: The model's; None: lengths are estimated from characters, and a finding says so.
        max_length: Where rows will be cut, in tokens: supervised tokens beyond it do not count.
        given: Names of the classes by hand.
        problem_type: For sequence-classification, what the user demands.
        template: As for `encode`.

    Returns:
        The facts, and findings: `lengths-estimated`, `data-duplicates`, `data-leaked`, `labels-conflict`,
        `labels-imbalance`, `labels-unseen`, `data-truncated`, and those of the encoding.

    Raises:
        TunekitError: what is wrong with labels or texts, as for `encode`.

    Example:
        >>> from tunekit.data.read import read
        >>> rows = read([{"text": "good film", "label": "pos"}, {"text": "bad film", "label": "neg"}] * 2)
        >>> facts, findings = data_facts(rows, Task.named("sequence-classification"), {"text": "text", "label": "label"})
        >>> facts.label_names, facts.class_counts, facts.num_duplicates, [f.code for f in findings]
        (('neg', 'pos'), (2, 2), 2, ['lengths-estimated', 'data-duplicates'])
    """
    problem = read_problem(rows.train, task, columns, problem_type)
    names = label_names(rows.train, task, columns, given, problem)
    lengths = _lengths(rows.train, task, columns, tokenizer, max_length, names, problem, template)
    repeats = _repeats(rows, task, columns, problem)
    counts = _class_counts(rows.train, columns, names, problem) if names else ()
    facts = DataFacts(
        num_examples=len(rows.train),
        num_eval_examples=len(rows.eval) if rows.eval is not None else 0,
        num_labels=num_labels(rows.train, columns, names, problem),
        label_names=() if all(name == str(i) for i, name in enumerate(names)) else names,
        class_counts=counts,
        problem_type=problem,
        columns=tuple(columns.items()),
        num_choices=_num_choices(rows.train, columns),
        fingerprint=fingerprint(rows.train, columns),
        **lengths.facts,
        **repeats,
    )
    return facts, (*lengths.findings, *_findings(facts, names, max_length))


# -------------------------------------------------------------------------------------------------------------- lengths
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Lengths:
    """Fields of DataFacts, and what was found on the way to them."""

    facts: dict[str, Any]
    findings: tuple[Finding, ...]


def _lengths(
    dataset: datasets.Dataset,
    task: Task,
    columns: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
    names: Sequence[str],
    problem: str | None,
    template: str | None,
) -> _Lengths:
    """Lengths of a sample, encoded as for training but uncut."""
    used, rename = renaming(dataset, columns, template)
    picked = sample(len(dataset))
    read: dict[str, list[Any]] = {column: [] for column in used}
    for part in in_batches(dataset, used, picked):
        for column, told in part.items():
            read[column] += told
    batch = rename(read)
    if tokenizer is None:
        return _estimated(task, batch, max_length)
    tally = Tally()
    made = encoder_of(task, tokenizer, columns, None, names, problem, template, tally)(batch, picked)
    nested = task.name == "multiple-choice"
    lengths = [max(map(len, row)) if nested else len(row) for row in made["input_ids"]]
    supervised = [sum(x != IGNORE for x in row[:max_length]) for row in made["labels"]] if _by_token(task) else None
    facts = {
        "lengths": tuple(sorted(lengths)),
        "target_lengths": tuple(sorted(map(len, made["labels"]))) if task.name == "seq2seq" else (),
        "supervised_tokens": sum(supervised) / len(supervised) if supervised else None,
    }
    return _Lengths(facts=facts, findings=tally.findings(len(picked), None))


def sample(size: int) -> list[int]:
    """Row numbers to measure: all, or 1,000 drawn with a fixed seed, ascending.

    Example:
        >>> sample(3), len(sample(10_000)), sample(10_000) == sample(10_000)
        ([0, 1, 2], 1000, True)
    """
    return list(range(size)) if size <= SAMPLE_ROWS else sorted(random.Random(0).sample(range(size), SAMPLE_ROWS))


def _by_token(task: Task) -> bool:
    return task.name in ("causal-lm", "seq2seq", "token-classification")


def _estimated(task: Task, batch: Mapping[str, list[Any]], max_length: int | None) -> _Lengths:
    """Lengths from characters: about four a token, and two specials."""
    inputs = [batch[n] for n in _INPUTS if n in batch]
    read = [sum(map(_tokens, row)) for row in zip(*inputs, strict=True)]
    if "choices" in batch:
        read = [_tokens(t) + max(map(_tokens, _texts(c))) for t, c in zip(batch["text"], batch["choices"], strict=True)]
    written = [_tokens(v) for n in _TARGETS if n in batch for v in batch[n]]
    supervised: list[int] | None = written or read if _by_token(task) else None
    if task.name == "token-classification":
        supervised = [len(row) for row in batch["tokens"]]
    elif task.name == "causal-lm" and written:
        read = [r + w for r, w in zip(read, written, strict=True)]
    facts = {
        "lengths": tuple(sorted(n + 2 for n in read)),
        "target_lengths": tuple(sorted(n + 1 for n in written)) if task.name == "seq2seq" else (),
        "supervised_tokens": sum(min(n, max_length or n) for n in supervised) / len(supervised) if supervised else None,
    }
    seen = f"lengths estimated as {CHARACTERS_PER_TOKEN} characters a token"
    finding = note(
        "lengths-estimated",
        seen,
        "there is no tokenizer beside the model",
        "give a folder with its tokenizer, or `mean_tokens`",
    )
    return _Lengths(facts=facts, findings=(finding,))


def _tokens(value: Any) -> int:
    """Tokens of a text, a list of words, choices or messages, from its characters."""
    return -(-sum(len(text) + 1 for text in _texts(value)) // CHARACTERS_PER_TOKEN)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return _texts(value.get("content") or value.get("value") or value.get("text"))
    return [text for item in value or () for text in _texts(item)]


# -------------------------------------------------------------------------------------------------------------- repeats
def _repeats(rows: Rows, task: Task, columns: Mapping[str, str], problem: str | None) -> dict[str, Any]:
    """Rows that occur twice, in both splits, or with two labels; white space and case aside.

    Where text is written, one input may rightly have several answers: there a row repeats only with its answer.
    Of each row eight bytes are kept at a time, its key, and never its texts.
    """
    import numpy as np

    inputs = [columns[n] for n in _INPUTS if n in columns]
    answers = [columns[n] for n in _TARGETS if n in columns]
    label = (columns.get("label") or columns.get("tags")) if _has_classes(task, problem) else None
    labels = [label] if label else []
    read, answered, labelled = _keys(rows.train, inputs, answers, labels)
    held = _keys(rows.eval, inputs)[0] if rows.eval is not None else np.empty(0, dtype=np.int64)
    return {
        "num_duplicates": len(read) - len(np.unique(answered if answers else read)),
        "num_leaked": int(np.isin(held, read).sum()),
        "num_conflicts": _conflicts(read, labelled) if label else 0,
    }


def _has_classes(task: Task, problem: str | None) -> bool:
    return task.name in ("multiple-choice", "token-classification") or (problem or "regression") != "regression"


def _keys(
    dataset: datasets.Dataset, inputs: Sequence[str], answers: Sequence[str] = (), labels: Sequence[str] = ()
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Numbers a row that two rows share when their inputs are the same: alone, with their answers, with their labels."""
    import numpy as np

    keys = np.empty((3, len(dataset)), dtype=np.int64)
    start = 0
    for batch in in_batches(dataset, [*inputs, *answers, *labels]):
        read = [hash(_plain(row)) for row in zip(*(batch[c] for c in inputs), strict=True)]
        stop = start + len(read)
        keys[0, start:stop] = read
        if answers:
            told = (_plain(row) for row in zip(*(batch[c] for c in answers), strict=True))
            keys[1, start:stop] = [hash(pair) for pair in zip(read, told, strict=True)]
        if labels:
            told = (json.dumps(row, default=str) for row in zip(*(batch[c] for c in labels), strict=True))
            keys[2, start:stop] = [hash(pair) for pair in zip(read, told, strict=True)]
        start = stop
    return keys[0], keys[1], keys[2]


def _plain(row: Sequence[Any]) -> str:
    """The texts of a row, white space and case aside."""
    return " \0 ".join(" ".join(" ".join(_texts(v)).split()).casefold() for v in row)


def _conflicts(read: NDArray[Any], labelled: NDArray[Any]) -> int:
    """Rows whose input also stands with another label."""
    import numpy as np

    _, first = np.unique(labelled, return_index=True)
    inputs, kinds = np.unique(read[first], return_counts=True)
    return int(np.isin(read, inputs[kinds > 1]).sum())


def _class_counts(
    dataset: datasets.Dataset, columns: Mapping[str, str], names: Sequence[str], problem: str | None
) -> tuple[int, ...]:
    """Rows per class; a row counts for each of its classes, and for each tag that it holds."""
    column = columns.get("tags", columns.get("label", ""))
    counted: Counter[int] = Counter()
    for batch in in_batches(dataset, [column]):
        if "tags" in columns:
            present: Iterable[Any] = (set(row) - {IGNORE} for row in encode_tags(batch[column], names))
        else:
            encoded = encode_labels(batch[column], names, problem)
            several = problem == "multi_label_classification"
            present = ([i for i, on in enumerate(row) if on] for row in encoded) if several else ([i] for i in encoded)
        counted.update(i for row in present for i in row)
    return tuple(counted[i] for i in range(len(names)))


def _num_choices(dataset: datasets.Dataset, columns: Mapping[str, str]) -> int | None:
    return len(_texts(values(dataset, columns["choices"], 1)[0])) if "choices" in columns else None


# --------------------------------------------------------------------------------------------------------- fingerprint
def fingerprint(dataset: datasets.Dataset, columns: Mapping[str, str]) -> str:
    """Sixteen hex digits that change when a row in use does; the same in every process.

    Example:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"text": ["a"], "note": ["x"]})
        >>> fingerprint(rows, {"text": "text"}) == fingerprint(rows.remove_columns("note"), {"text": "text"})
        True
    """
    step = -(-len(dataset) // FINGERPRINT_ROWS)
    picked = range(0, len(dataset), step or 1)
    digest = hashlib.sha256(f"{len(dataset)}\n".encode())
    for column in sorted(set(columns.values())):
        digest.update(f"[{json.dumps(column)}, [".encode())
        comma = ""
        for batch in in_batches(dataset, [column], picked):
            digest.update((comma + json.dumps(batch[column], ensure_ascii=True, default=str)[1:-1]).encode())
            comma = ", "
        digest.update(b"]]")
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- findings
def _findings(facts: DataFacts, names: Sequence[str], max_length: int | None) -> list[Finding]:
    """What stands out in the facts."""
    found = []
    if facts.num_duplicates:
        found.append(
            note("data-duplicates", f"{facts.num_duplicates} of {facts.num_examples} training rows occur before", "repeated rows weigh more", "remove them if that is not meant")
        )  # fmt: skip
    if facts.num_leaked:
        found.append(
            warning("data-leaked", f"{facts.num_leaked} of {facts.num_eval_examples} evaluation rows occur among the training rows", "their score says nothing about new rows", "remove them from one side")
        )  # fmt: skip
    if facts.num_conflicts:
        found.append(
            warning("labels-conflict", f"{facts.num_conflicts} training rows stand with different labels for the same input", "no model can get them all right", "look at their labels")
        )  # fmt: skip
    longer = sum(n > max_length for n in facts.lengths) if max_length else 0
    if longer * 100 >= len(facts.lengths) > 0:
        found.append(
            warning("data-truncated", f"{100 * longer / len(facts.lengths):.0f} % of the rows are longer than {max_length} tokens", "their ends will be cut off", "raise `max_length`")
        )  # fmt: skip
    return found + _class_findings(facts, names)


def _class_findings(facts: DataFacts, names: Sequence[str]) -> list[Finding]:
    """Classes without rows, and classes with far fewer than others; tags are uneven by nature."""
    if not facts.class_counts or facts.problem_type is None:
        return []
    found = []
    unseen = [name for name, n in zip(names, facts.class_counts, strict=True) if not n]
    if unseen:
        listed = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        found.append(
            warning("labels-unseen", f"no training row has the class{'es' if len(unseen) > 1 else ''} {listed}", "the model cannot learn what it never sees", "add rows, or leave the class out")
        )  # fmt: skip
    low, high = min((n for n in facts.class_counts if n), default=0), max(facts.class_counts)
    if low * 10 < high:
        found.append(
            warning("labels-imbalance", f"the rarest class has {low} rows, the most frequent {high}", "accuracy hides rare classes", "look at `f1_macro`, or add rows of the rare ones")
        )  # fmt: skip
    return found
