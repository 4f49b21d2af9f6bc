"""The training data read into facts: rows where there are any, what was told where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunekit.advisor.observe.closeness import own_loss
from tunekit.advisor.observe.given import Given, contradictions, facts_by_hand, with_given
from tunekit.errors import InvalidError, UnsupportedError, raise_all
from tunekit.finding import Finding, error
from tunekit.task import Task
from tunekit.workload import DataFacts, ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What was found out about the data."""

    data: DataFacts
    task: Task
    source: str | None
    """Path or hub id, where the data has one."""
    findings: tuple[Finding, ...]


def observe_data(
    model: ModelFacts,
    dataset: Any,
    task: str | Task,
    columns: Mapping[str, str] | None,
    given: Given,
    live: PreTrainedModel | None = None,
) -> Observed:
    """The task and the facts of its data.

    Args:
        model: What is known of the model: it bounds the tasks, and its tokenizer measures the rows.
        dataset: Anything that `tunekit.data.read` reads, or None where facts are given by hand.
        task: A task or its name, or `auto`.
        columns: Our column names to the data's, where the columns do not speak for themselves.
        given: Facts by hand; they win over what the rows say.
        live: The model itself, where it is in memory.

    Raises:
        InvalidError: contradictory facts, all at once; an unknown or ambiguous task; missing columns.
        UnsupportedError: `task-architecture`.
    """
    if dataset is None:
        chosen = _task_without_rows(model, task, given)
        raise_all([*_columns_without_rows(columns), *contradictions(given, chosen, model)])
        data, findings = facts_by_hand(given, chosen)
        return Observed(data=data, task=chosen, source=None, findings=findings)
    return _read(model, dataset, task, columns, given, live)


def _read(
    model: ModelFacts,
    dataset: Any,
    task: str | Task,
    columns: Mapping[str, str] | None,
    given: Given,
    live: PreTrainedModel | None,
) -> Observed:
    from tunekit.data.columns import infer_task, resolve
    from tunekit.data.facts import data_facts
    from tunekit.data.read import read

    named = None if task == "auto" else checked_task(model, task)
    rows = read(dataset)
    chosen = named or infer_task(rows.train, columns, model.tasks)
    raise_all(contradictions(given, chosen, model))
    resolved = resolve(rows.train, columns, chosen)
    tokenizer = tokenizer_of(model)
    data, findings = data_facts(rows, chosen, resolved, tokenizer, given.max_length, given.label_names or ())
    if given.own_loss is None or given.own_loss == "measure":
        asked = given.own_loss == "measure"
        loss, notes = own_loss(model, live, asked, chosen, rows.train, dict(resolved), tokenizer, data.label_names)
        data, findings = replace(data, own_loss=loss), (*findings, *notes)
    return Observed(data=with_given(data, given), task=chosen, source=rows.source, findings=findings)


def checked_task(model: ModelFacts, task: str | Task) -> Task:
    """The task, refused where transformers has no such head for the architecture.

    Raises:
        InvalidError: `task-unknown`.
        UnsupportedError: `task-architecture`.
    """
    chosen = task if isinstance(task, Task) else Task.named(task)
    if chosen.name not in model.tasks:
        raise UnsupportedError(
            error(
                "task-architecture", f"task {chosen} with a `{model.model_type}` model", f"transformers has no {chosen.auto_class} for it"
                if chosen.name not in ("causal-lm", "seq2seq") else f"it is {_a(model.side)}, which does not write text this way",
                f"choose one of its tasks ({', '.join(model.tasks)}), or another model",
            )
        )  # fmt: skip
    return chosen


def _a(side: str) -> str:
    return {"encoder": "an encoder", "decoder": "a decoder", "seq2seq": "an encoder-decoder"}[side]


def _task_without_rows(model: ModelFacts, task: str | Task, given: Given) -> Task:
    """The task by name, or the one that the architecture and the facts leave."""
    if task != "auto":
        return checked_task(model, task)
    if given.num_labels is not None or given.label_names:
        likely: tuple[str, ...] = ("sequence-classification",)
    else:
        likely = {"decoder": ("causal-lm",), "seq2seq": ("seq2seq",), "encoder": model.tasks}[model.side]
    left = [name for name in likely if name in model.tasks]
    if len(left) != 1:
        raise InvalidError(
            error("task-ambiguous", 'task "auto" without a dataset', f"the model could learn {', '.join(model.tasks)}", f'set `task="{model.tasks[0]}"` or another of these')
        )  # fmt: skip
    return Task.named(left[0])


def _columns_without_rows(columns: Mapping[str, str] | None) -> list[Finding]:
    if not columns:
        return []
    return [
        error(
            "columns-without-dataset",
            "`columns` without `dataset`",
            "there are no columns to name",
            "pass `dataset=...`, or leave `columns` out",
        )
    ]


def tokenizer_of(model: ModelFacts) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the model, or None where there is none at hand; then lengths are estimated from characters."""
    from transformers import AutoTokenizer

    from tunekit.advisor.observe.model import hub_reachable, is_folder
    from tunekit.data.texts import knows_words

    for local in (True, False):
        if not local and (is_folder(model.name) or not model.has_weights or not hub_reachable()):
            return None
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                model.name, revision=model.revision, local_files_only=local, trust_remote_code=False
            )
        except Exception:
            # Whatever is wrong with it, the advice can do without; training refuses it in words.
            continue
        if knows_words(tokenizer):
            return tokenizer
    return None
