"""Self-training with prompts: models of single templates label unlabelled rows for each other, then for the last one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.assemble import trainer
from tunekit.data.columns import resolve
from tunekit.data.labels import encode_labels, label_names
from tunekit.data.read import read
from tunekit.errors import UnsupportedError, raise_all
from tunekit.finding import error
from tunekit.objectives.prompt_learning import PromptLearning
from tunekit.plan import DataSpec, Plan
from tunekit.prompting import prompt_scores
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

_LOG = logging.getLogger(__name__)


def self_train(
    plan: Plan,
    train_dataset: Any,
    unlabelled: Any,
    *,
    eval_dataset: Any = None,
    generations: int = 1,
    growth: float = 5.0,
    temperature: float = 2.0,
    overwrite: bool = False,
    **arguments: Any,
) -> Trainer:
    """Trains a plan with `PromptLearning` on labelled and unlabelled rows (PET and iPET); returns the trained Trainer.

    One model a template learns from the labelled rows. In every further generation it learns anew from `growth` times as
    many rows: those of which the *other* templates' models are surest, as many of each class as there are labelled ones.
    At the end one model with all templates learns from every row, the unlabelled with the models' mean answer as soft
    labels. Only one model is in memory at a time.

    Args:
        plan: With `objective: {kind: prompt-learning}`; its steps and rates hold for every model.
        train_dataset: The labelled rows.
        unlabelled: Rows with the same columns; a label in them is not looked at.
        eval_dataset: Rows to evaluate the last model on.
        generations: 1 is PET; iPET's authors take 3 to 4.
        growth: How many times as many rows each generation has.
        temperature: Softens the answers that the last model learns from.
        overwrite: Whether an output folder that holds something may be written into.
        **arguments: `TrainingArguments` fields that the plan has no say in.

    Raises:
        UnsupportedError: `self-train-objective`, `self-train-processes`, `self-train-range`.
        TunekitError: what `tunekit.trainer` refuses.

    References:
        Schick, Schuetze, "Exploiting Cloze Questions for Few Shot Text Classification and Natural Language Inference", 2021.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="./bert", task="sequence-classification", method=tunekit.methods.Full())
        >>> tunekit.self_train(plan, few_rows := [], many_rows := [], generations=3)
        Traceback (most recent call last):
        ...
        tunekit.errors.UnsupportedError: [self-train-objective] self-training with `objective: null`: ...
    """
    raise_all(_faults(plan, generations, growth, temperature), UnsupportedError)
    objective = plan.objective
    assert isinstance(objective, PromptLearning)
    pool = _Pool.of(plan, train_dataset, unlabelled)
    plan = plan.replace(data=DataSpec(path="rows", columns=pool.columns, label_names=pool.names))
    quiet = {"save_strategy": "no", "disable_tqdm": True, **arguments}
    templates = objective.templates
    scores: list[torch.Tensor] = []
    for generation in range(generations):
        made = []
        for i, template in enumerate(templates):
            rows = pool.grown(_others(scores, i), growth**generation) if scores else pool.labelled
            made.append(_answers(plan, template, rows, pool, Path(plan.output_dir) / "templates", quiet))
            _LOG.info("generation %d, template %d of %d: %d rows", generation + 1, i + 1, len(templates), len(rows))
        scores = made
    soft = (sum(scores[1:], scores[0]) / len(scores) / temperature).softmax(-1)
    last = trainer(
        plan, train_dataset=pool.all_with(soft.argmax(-1)), eval_dataset=eval_dataset, overwrite=overwrite or generations > 0, **arguments
    )  # fmt: skip
    last.train_dataset = _softened(last.train_dataset, soft, len(pool.labelled))
    last.train()
    return last


def _faults(plan: Plan, generations: int, growth: float, temperature: float) -> list[Any]:
    faults = []
    if not isinstance(plan.objective, PromptLearning):
        faults.append(error("self-train-objective", f"self-training with `objective: {plan.objective.slug if plan.objective else 'null'}`", "the unlabelled rows are labelled by prompts", "set `objective: {kind: prompt-learning, ...}`"))  # fmt: skip
    if plan.num_processes > 1:
        faults.append(error("self-train-processes", f"`num_processes: {plan.num_processes}`", "the models are trained one after the other in one process", "set `num_processes: 1`"))  # fmt: skip
    if generations < 1 or growth < 1 or temperature <= 0:
        faults.append(error("self-train-range", f"generations {generations}, growth {growth}, temperature {temperature}", "one generation or more, growing, at a temperature above 0", "leave them at 1, 5.0 and 2.0"))  # fmt: skip
    return faults


@dataclass(frozen=True, slots=True)
class _Pool:
    """Labelled rows and the texts of unlabelled ones."""

    labelled: list[dict[str, Any]]
    unlabelled: list[dict[str, Any]]
    names: tuple[str, ...]
    classes: tuple[int, ...]
    """Of the labelled rows."""
    columns: dict[str, str]

    @staticmethod
    def of(plan: Plan, train_dataset: Any, unlabelled: Any) -> _Pool:
        task = Task.named(plan.task)
        held, more = read(train_dataset).train, read(unlabelled).train
        given = dict(plan.data.columns) if plan.data else None
        columns = resolve(held, given, task)
        names = label_names(held, task, columns, plan.data.label_names if plan.data else ())
        label = columns["label"]
        classes = encode_labels(list(held[label]), names, "single_label_classification", label)
        rows = [{**row, label: names[y]} for row, y in zip(held.to_list(), classes, strict=True)]
        texts = [{k: v for k, v in row.items() if k != label} for row in more.to_list()]
        shared = [k for k in rows[0] if k != label and k in more.column_names]
        rows = [{k: row[k] for k in (*shared, label)} for row in rows]
        return _Pool(rows, [{k: row[k] for k in shared} for row in texts], names, tuple(classes), columns)

    def grown(self, scores: torch.Tensor, times: float) -> list[dict[str, Any]]:
        """The labelled rows and, of each class, the unlabelled ones that the scores are surest of."""
        guesses, label = scores.argmax(-1), self.columns["label"]
        rows = list(self.labelled)
        for y, name in enumerate(self.names):
            wanted = round(self.classes.count(y) * (times - 1))
            where = (guesses == y).nonzero()[:, 0]
            surest = where[scores[where, y].argsort(descending=True)[:wanted]]
            rows += [{**self.unlabelled[i], label: name} for i in surest.tolist()]
        return rows

    def all_with(self, guesses: torch.Tensor) -> list[dict[str, Any]]:
        """Every row, the unlabelled with a guess."""
        label = self.columns["label"]
        more = [{**row, label: self.names[int(y)]} for row, y in zip(self.unlabelled, guesses, strict=True)]
        return [*self.labelled, *more]


def _others(scores: Sequence[torch.Tensor], own: int) -> torch.Tensor:
    """What the other templates' models say; a single one's own."""
    kept = [s for i, s in enumerate(scores) if i != own] or list(scores)
    return sum(kept[1:], kept[0]) / len(kept)


def _answers(
    plan: Plan, template: str, rows: Any, pool: _Pool, folder: Path, arguments: dict[str, Any]
) -> torch.Tensor:
    """Trains a model of one template and asks it about the unlabelled rows."""
    assert isinstance(plan.objective, PromptLearning)
    at = plan.objective.templates.index(template)
    prior = {name: (values[at],) for name, values in plan.objective.prior.items()}
    alone = dataclasses.replace(plan.objective, templates=(template,), prior=prior)
    made = trainer(
        plan.replace(objective=alone, output_dir=str(folder)), train_dataset=rows, overwrite=True, **arguments
    )
    made.train()
    tokenizer: Any = made.processing_class
    said = prompt_scores(
        made.model, tokenizer, alone, pool.unlabelled, examples=pool.labelled if alone.demonstrations else None,
        columns=pool.columns, max_length=plan.max_length, batch_size=plan.per_device_eval_batch_size,
    )  # fmt: skip
    order = [list(alone.verbalizer).index(name) for name in pool.names]
    return said[:, order]


def _softened(dataset: Any, soft: torch.Tensor, num_labelled: int) -> Any:
    """The rows with a share of each class for a label: all of one for those that were labelled by hand."""
    import torch
    from torch.nn.functional import one_hot

    hard = one_hot(torch.tensor(dataset["labels"][:num_labelled]), soft.shape[-1]).float()
    return dataset.remove_columns(["labels"]).add_column("labels", torch.cat([hard, soft]).tolist())
