"""Encode: rows to what a model takes: token ids, masks and labels, for each of the six tasks."""

from __future__ import annotations

import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.data.classify import choice_encoder, sequence_encoder
from tunekit.data.generate import messages_encoder, prompt_encoder, seq2seq_encoder, text_encoder
from tunekit.data.kept import kept, key
from tunekit.data.labels import IGNORE
from tunekit.data.labels import label_names as read_names
from tunekit.data.labels import problem_type as read_problem
from tunekit.data.place import place
from tunekit.data.quiet import no_bars
from tunekit.data.spans import answer_encoder, token_encoder
from tunekit.data.tally import Tally
from tunekit.data.texts import Batch
from tunekit.errors import InvalidError, MissingError
from tunekit.finding import Finding, error

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from tunekit.task import Task

BATCH_ROWS = 1_000
_NO_LIMIT = 10**9
"""Tokenizers without a length of their own say a number above this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Rows that a model takes, and what happened on the way."""

    dataset: datasets.Dataset
    findings: tuple[Finding, ...] = ()


def encode(
    dataset: datasets.Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, str],
    max_length: int | None = None,
    label_names: Sequence[str] = (),
    problem_type: str | None = None,
    template: str | None = None,
) -> Encoded:
    """Tokens and labels of rows, without padding.

    Rows of more than a megabyte are kept in the user's cache folder under a digest of all that decides them (`TUNEKIT_CACHE`
    names another folder, or `off`); of others nothing is written to disk that outlives the process. The tokenizer itself
    uses every core.

    What each task gets beside `input_ids` and `attention_mask` (and `token_type_ids` where the tokenizer gives them):

    - sequence-classification: `labels`, an id, a row of 0.0 and 1.0, or numbers.
    - token-classification: `labels` on each word's first sub-token, -100 elsewhere.
    - question-answering: `start_positions` and `end_positions`; long contexts become overlapping windows, one a row;
      an answer outside the window is at `[CLS]`.
    - multiple-choice: lists of one sequence a choice; `labels` is the choice's index.
    - seq2seq: `labels`, the target's tokens.
    - causal-lm: `labels`. Of `text` every token and the end-of-sequence token; of `prompt` and `completion` or
      `messages` only what the assistant writes and what ends it, through the chat template where the tokenizer has one.
      Without one, prompt and completion are joined: as they are where the data's own column is called `prompt` or a
      `template` is given, otherwise with a line end between unless there is white space.

    Args:
        dataset: The rows; left as they are.
        task: What they are for.
        tokenizer: The model's tokenizer.
        columns: Our column names to the data's, from `resolve`.
        max_length: Longest sequence in tokens; longer ones are cut at the right. None: the tokenizer's own limit.
        label_names: The classes, from the training rows; needed to encode texts as labels.
        problem_type: For sequence-classification, from `labels.problem_type`.
        template: A `str.format` pattern over the data's columns that makes the prompt (or source).

    Raises:
        InvalidError: `labels-range`, `labels-missing`, `text-missing`, `tags-length`, `answer-missing`,
            `choices-uneven`, `chat-template-refuses`, `data-unsupervised` (no row is left), `template-task`.
        MissingError: `template-field`.
        UnsupportedError: `chat-template-missing`, `chat-template-prefix`, `tokenizer-slow`.
    """
    problem = read_problem(dataset, task, columns, problem_type)
    label_names = label_names or read_names(dataset, task, columns, (), problem)
    limit = max_length if max_length is not None else own_limit(tokenizer)
    used, rename = renaming(dataset, columns, template)

    def make() -> tuple[datasets.Dataset, tuple[Finding, ...]]:
        tally = Tally()
        encoder = encoder_of(task, tokenizer, columns, limit, label_names, problem, template, tally)
        made = _mapped(dataset, used, _keeping(encoder, rename, task, tally), limit)
        return made, tally.findings(len(dataset), limit)

    name = key(
        dataset, used, tokenizer, task=task.name, columns=sorted(columns.items()), limit=limit, names=list(label_names), problem=problem, template=template
    )  # fmt: skip
    rows, findings = kept(name, make)
    return Encoded(dataset=rows, findings=findings)


def _mapped(dataset: datasets.Dataset, used: list[str], function: Any, limit: int | None) -> datasets.Dataset:
    with no_bars():
        made = (
            dataset.with_format(None)
            .select_columns(used)
            .map(
                function,
                batched=True,
                batch_size=BATCH_ROWS,
                with_indices=True,
                remove_columns=used,
                load_from_cache_file=False,
                new_fingerprint=uuid.uuid4().hex[:16],
                **place(dataset),
            )
        )
    if not len(made):
        raise InvalidError(
            error("data-unsupervised", f"{len(dataset)} rows with `max_length` {limit}", "not one has a token that the loss would see", "set a larger `max_length`, or look at the rows' answers")
        )  # fmt: skip
    return made


def own_limit(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest sequence that the tokenizer was made for, in tokens; None where it has no limit."""
    limit = tokenizer.model_max_length
    return int(limit) if limit and limit < _NO_LIMIT else None


def encoder_of(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    columns: Mapping[str, str],
    limit: int | None,
    label_names: Sequence[str],
    problem_type: str | None,
    template: str | None,
    tally: Tally,
) -> Callable[[Batch, list[int]], Batch]:
    """The function from some rows under our column names, with their numbers, to a model's inputs."""
    match task.name:
        case "sequence-classification":
            return sequence_encoder(tokenizer, limit, label_names, problem_type, tally)
        case "token-classification":
            return token_encoder(tokenizer, limit, label_names, tally)
        case "question-answering":
            return answer_encoder(tokenizer, limit, tally)
        case "multiple-choice":
            return choice_encoder(tokenizer, limit, tally)
        case "seq2seq":
            return seq2seq_encoder(tokenizer, limit, tally)
    if "messages" in columns:
        return messages_encoder(tokenizer, limit, tally)
    if "completion" in columns:
        literal = template is not None or columns.get("prompt") == "prompt"
        return prompt_encoder(tokenizer, limit, tally, literal)
    return text_encoder(tokenizer, limit, tally)


def renaming(
    dataset: datasets.Dataset, columns: Mapping[str, str], template: str | None
) -> tuple[list[str], Callable[[Batch], Batch]]:
    """The data's columns in use, and the function that gives their batches our names and writes the template out.

    Raises:
        InvalidError: `template-task`: the rows have no prompt to make.
        MissingError: `template-field`: the template names a column that is not there.
    """
    fields = [] if template is None else _fields(dataset, columns, template)
    into = "source" if "source" in columns else "prompt"

    def rename(batch: Batch) -> Batch:
        renamed = {ours: batch[theirs] for ours, theirs in columns.items()}
        if template is None:
            return renamed
        renamed.pop("input", None)
        count = len(next(iter(batch.values())))
        rows = [{f: "" if batch[f][i] is None else batch[f][i] for f in fields} for i in range(count)]
        return {**renamed, into: [_written(template, row) for row in rows]}

    return list(dict.fromkeys([*columns.values(), *fields])), rename


def _written(template: str, row: Mapping[str, Any]) -> str:
    try:
        return template.format(**row)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as e:  # of a form such as `{score:.2f}` for what is no number
        raise InvalidError(
            error("template-format", f"`template` {template!r}", f"a row cannot be written with it ({e})", "write `{column}`, without what follows a colon or `!`")
        ) from None  # fmt: skip


def _fields(dataset: datasets.Dataset, columns: Mapping[str, str], template: str) -> list[str]:
    """The columns that a template names."""
    if not {"prompt", "source"} & columns.keys():
        raise InvalidError(
            error("template-task", f"`template` with columns {', '.join(columns)}", "it makes a prompt, and these rows have none", "remove `template`, or name `prompt` and `completion` in `columns`")
        )  # fmt: skip
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as e:
        raise InvalidError(
            error("template-format", f"`template` {template!r}", str(e), "write literal braces twice: `{{` and `}}`")
        ) from None
    fields = list(dict.fromkeys(names))
    absent = [f for f in fields if f not in dataset.column_names]
    if absent:
        there = ", ".join(f"`{c}`" for c in dataset.column_names)
        raise MissingError(
            error("template-field", f"`template` names {', '.join(f'`{f}`' for f in absent)}", f"the data has {there}", "name columns of the data, as in `{instruction}`")
        )  # fmt: skip
    return fields


def _keeping(
    encoder: Callable[[Batch, list[int]], Batch], rename: Callable[[Batch], Batch], task: Task, tally: Tally
) -> Callable[[Mapping[str, list[Any]], list[int]], Batch]:
    """The encoder over the data's own columns, less the rows that teach nothing; those are counted."""

    def encode_batch(batch: Mapping[str, list[Any]], rows: list[int]) -> Batch:
        made = encoder(rename(dict(batch)), rows)
        if task.name not in ("causal-lm", "token-classification", "seq2seq") or "labels" not in made:
            return made
        # A causal model predicts the next token: the first label of a row is never a target.
        start = 1 if task.name == "causal-lm" else 0
        teaching = [any(x != IGNORE for x in labels[start:]) for labels in made["labels"]]
        for row, keep in zip(rows, teaching, strict=True):
            if not keep:
                tally.add("rows-unsupervised", row)
        return {k: [v for v, keep in zip(values, teaching, strict=True) if keep] for k, values in made.items()}

    return encode_batch
