"""A finished run's folder as a model and its tokenizer, ready for use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunekit.attach import load
from tunekit.errors import MissingError
from tunekit.finding import error
from tunekit.plan import DataSpec, Plan
from tunekit.pretrained import form_of, load_model, load_tokenizer
from tunekit.task import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

PLAN = "plan.yaml"


class Reopened(NamedTuple):
    """What a run left: the model with what it learnt, in evaluation mode; its tokenizer; its plan."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    plan: Plan


def reopen(
    folder: str | Path,
    *,
    base: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    quantized: bool = True,
) -> Reopened:
    """Loads the base that a run's plan names and attaches what the run learnt.

    Args:
        folder: The output folder of a run: it holds `plan.yaml` and what was saved.
        base: Where the base lies now, if not where the plan says.
        dtype: Dtype of the base; None: the plan's.
        quantized: Whether a quantised base is quantised again; False loads it whole, as merging needs it.

    Raises:
        MissingError: `run-missing`; `model-missing` where the base is gone.
        TunekitError: what `tunekit.Plan.load` and `tunekit.load` say.

    Example:
        >>> model, tokenizer, plan = reopen("runs/nowhere")
        Traceback (most recent call last):
        ...
        tunekit.errors.MissingError: [run-missing] folder 'runs/nowhere': no such folder. ...
    """
    folder = Path(folder)
    if not (folder / PLAN).is_file():
        why = f"it holds no {PLAN}" if folder.is_dir() else "no such folder"
        raise MissingError(
            error("run-missing", f"folder {str(folder)!r}", why, "name the output folder of a finished run")
        )
    plan = Plan.load(folder / PLAN)
    whole = (folder / "config.json").is_file()
    name, revision = (str(folder), None) if whole else (base, None) if base else (plan.model, plan.revision)
    asked = plan.replace(
        model=name, revision=revision, dtype=dtype or plan.dtype, quantization=plan.quantization if quantized and not whole else None
    )  # fmt: skip
    form = form_of(asked)
    model = load_model(asked, form=form, **labels_of(plan))
    if not whole:
        model = load(model, folder, task=form)
    return Reopened(model.eval(), load_tokenizer(str(folder) if _has_tokenizer(folder) else name, revision), plan)


def labels_of(plan: Plan) -> dict[str, Any]:
    """What the head over labels looks like, from the plan that a run left."""
    names = plan.data.label_names if plan.data else ()
    one = plan.problem_type == "regression"
    return {"num_labels": 1 if one else len(names) or None, "label_names": names, "problem_type": plan.problem_type}


def resolved(plan: Plan, model: Any) -> Plan:
    """The plan with the classes and the kind of problem that the run read off its rows, so that it can be reopened.

    Args:
        plan: What was run.
        model: What learnt.
    """
    config: Any = model.config
    if not Task.named(plan.task).has_head or plan.data is None:
        return plan
    kind = getattr(config, "problem_type", None) if plan.task == "sequence-classification" else None
    labelled = plan.task in ("sequence-classification", "token-classification") and kind != "regression"
    names = tuple(str(config.id2label[i]) for i in sorted(config.id2label)) if labelled else ()
    data: DataSpec = dataclasses.replace(plan.data, label_names=plan.data.label_names or names)
    return plan.replace(data=data, problem_type=plan.problem_type or kind)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
