"""Material: the rows, labels and tokenizer of a plan, ready for a Trainer."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.data.columns import resolve
from tunekit.data.encode import encode
from tunekit.data.labels import label_names as read_label_names
from tunekit.data.labels import num_labels as count_labels
from tunekit.data.labels import problem_type as read_problem_type
from tunekit.data.read import Rows, read
from tunekit.data.tokenised import check_tokenised
from tunekit.errors import InvalidError
from tunekit.finding import Finding, error
from tunekit.once import once_a_machine
from tunekit.plan import Plan
from tunekit.pretrained import load_tokenizer, read_side
from tunekit.task import Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Rows and labels of a plan, ready for a Trainer."""

    tokenizer: PreTrainedTokenizerBase
    train: datasets.Dataset
    eval: datasets.Dataset | None
    label_names: tuple[str, ...]
    num_labels: int | None
    problem_type: str | None
    findings: tuple[Finding, ...]


def gather(plan: Plan, train_dataset: Any = None, eval_dataset: Any = None) -> Material:
    """Reads, labels and tokenises the rows of a plan, in the objective's own way where it has one.

    Raises:
        TunekitError: what is wrong with the rows, the columns, the labels or the tokenizer.
    """
    made: list[Material] = []

    def write(folder: Path) -> None:
        made.append(_gather(plan, train_dataset, eval_dataset))
        _put(made[0], folder)

    folder = once_a_machine(write) if train_dataset is None else None
    if made:
        return made[0]
    return _gather(plan, train_dataset, eval_dataset) if folder is None else _get(plan, folder)


def _put(material: Material, folder: Path) -> None:
    material.train.save_to_disk(folder / "train")
    if material.eval is not None:
        material.eval.save_to_disk(folder / "eval")
    rest = {name: getattr(material, name) for name in ("label_names", "num_labels", "problem_type", "findings")}
    (folder / "rest").write_bytes(pickle.dumps(rest))


def _get(plan: Plan, folder: Path) -> Material:
    import datasets

    from tunekit.data.collate import ensure_pad_token

    # What is unpickled was written a moment ago, by a process of this run, into a folder that only its user may write.
    return Material(
        tokenizer=ensure_pad_token(load_tokenizer(plan.model, plan.revision)),
        train=datasets.load_from_disk(folder / "train"),
        eval=datasets.load_from_disk(folder / "eval") if (folder / "eval").is_dir() else None,
        **pickle.loads((folder / "rest").read_bytes()),
    )


def _gather(plan: Plan, train_dataset: Any, eval_dataset: Any) -> Material:
    from tunekit.data.collate import ensure_pad_token

    task = Task.named(plan.task)
    rows = _rows(plan, train_dataset, eval_dataset)
    tokenizer = ensure_pad_token(load_tokenizer(plan.model, plan.revision))
    if "input_ids" in rows.train.column_names:
        for split in (rows.train, rows.eval):
            if split is not None:
                check_tokenised(split)
        return Material(
            tokenizer=tokenizer, train=rows.train, eval=rows.eval, label_names=(), num_labels=None, problem_type=plan.problem_type, findings=()
        )  # fmt: skip
    spec = plan.data
    columns = resolve(rows.train, dict(spec.columns) if spec else None, task)
    problem = read_problem_type(rows.train, task, columns, plan.problem_type)
    names = read_label_names(rows.train, task, columns, spec.label_names if spec else (), problem)
    shared: dict[str, Any] = {
        "columns": columns,
        "max_length": plan.max_length or context_length(plan.model, plan.revision, tokenizer),
        "label_names": names,
        "problem_type": problem,
        "template": spec.template if spec else None,
    }
    if plan.objective is not None:
        shared |= {"encode": encode, "side": read_side(plan.model, plan.revision), "examples": rows.train}
    make = encode if plan.objective is None else plan.objective.encode
    train = make(rows.train, task, tokenizer, **shared)
    evaluated = make(rows.eval, task, tokenizer, **shared) if rows.eval is not None else None
    return Material(
        tokenizer=tokenizer,
        train=train.dataset,
        eval=evaluated.dataset if evaluated else None,
        label_names=names,
        num_labels=count_labels(rows.train, columns, names, problem),
        problem_type=problem,
        findings=(*train.findings, *(evaluated.findings if evaluated else ())),
    )


def _rows(plan: Plan, train_dataset: Any, eval_dataset: Any) -> Rows:
    """The plan's rows from what was handed in or, failing that, from its `data`."""
    if train_dataset is not None:
        train = read(train_dataset)
        held_out = read(eval_dataset).train if eval_dataset is not None else train.eval
        return Rows(train=train.train, eval=held_out, source=train.source)
    if plan.data is None:
        raise InvalidError(
            error(
                "plan-data-missing",
                "a plan without `data`",
                "there are no rows to train on",
                "add `data: {path: ...}` or pass `train_dataset=`",
            )
        )
    d = plan.data
    return read(
        d.path, name=d.name, revision=d.revision, train_split=d.train_split, eval_split=d.eval_split,
        eval_path=d.eval_path, eval_share=d.eval_share, seed=plan.seed,
    )  # fmt: skip


def context_length(model: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest input in tokens that tokenizer and positions allow; None where nothing bounds it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if isinstance(n, int) and 0 < n < 10**9]
    return min(limits, default=None)
