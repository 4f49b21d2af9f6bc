"""The model card beside what a run saved: the plan, the scores, and how to load it, for people and for a hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.advice_text import method_text
from tunekit.files import write_text
from tunekit.plan import Plan
from tunekit.record_text import scores_of, steps_text, weights_text
from tunekit.task import Task

FILE_NAME = "README.md"

_HUB_TASKS = {
    "causal-lm": "text-generation", "seq2seq": "text2text-generation", "sequence-classification": "text-classification",
    "token-classification": "token-classification", "question-answering": "question-answering", "multiple-choice": "multiple-choice",
}  # fmt: skip
"""What a model hub calls our tasks."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def write_card(folder: str | Path, plan: Plan, record: Mapping[str, Any] | None = None) -> Path:
    """Writes `README.md` with the metadata that model hubs read.

    Args:
        folder: Where what was learnt lies.
        plan: What was run.
        record: The run's record, for scores, rows and measured figures.

    Example:
        >>> import tempfile
        >>> from tunekit.discovery import find
        >>> plan = Plan(model="gpt2", task="causal-lm", method=find("method", "lora")(r=4))
        >>> write_card(tempfile.mkdtemp(), plan).read_text().splitlines()[0]
        '---'
    """
    record = record or {}
    return write_text(Path(folder) / FILE_NAME, f"{_metadata(folder, plan, record)}\n{_body(plan, record)}")


def _metadata(folder: str | Path, plan: Plan, record: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = Task.named(plan.task)
    is_peft = (Path(folder) / "adapter_config.json").is_file()
    name = Path(plan.output_dir).name or "tunekit"
    data = Path(plan.data.path).name if plan.data else "data"
    scores = [
        EvalResult(
            task_type=_HUB_TASKS[task.name], dataset_type=data, dataset_name=data, metric_type=metric, metric_value=round(value, 4)
        )
        for metric, value in scores_of(record).items()
    ]  # fmt: skip
    card = ModelCardData(
        base_model=plan.model if is_hub_id(plan.model) else None,
        library_name="peft" if is_peft else "transformers" if (Path(folder) / "config.json").is_file() else "tunekit",
        pipeline_tag=_HUB_TASKS[task.name],
        tags=[
            "tunekit",
            plan.method.slug,
            *(["prompt-learning"] if plan.objective and "prompt" in plan.objective.slug else []),
        ],
        model_name=name if scores else None,
        eval_results=scores or None,
    )
    return f"---\n{card.to_yaml()}\n---"


def is_hub_id(model: str) -> bool:
    """Whether this is a name on a hub and no folder here.

    Example:
        >>> is_hub_id("owner/name"), is_hub_id("./name"), is_hub_id("/data/models/name")
        (True, False, False)
    """
    return _HUB_ID.fullmatch(model) is not None and not model.startswith(".") and not Path(model).exists()


def _body(plan: Plan, record: Mapping[str, Any]) -> str:
    base = plan.model if is_hub_id(plan.model) else f"{Path(plan.model).name} (a local folder)"
    parts = [
        f"# {method_text(plan)} of {base}",
        f"Trained for {plan.task} with tunekit; every setting stands in `plan.yaml`, what was measured in `record.json`.",
        *_scores(record),
        *_training(plan, record),
        *_use(plan),
        "## Reference",
        plan.method.reference + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(record: Mapping[str, Any]) -> list[str]:
    found = scores_of(record)
    if not found:
        return []
    rows = [f"| {metric.replace('_', ' ')} | {value:.4g} |" for metric, value in found.items()]
    held_out = (record.get("data") or {}).get("eval_rows")
    which = weights_text(record)
    note = (
        "Of the weights in this folder"
        + f": {which}" * bool(which)
        + f"; on {held_out:,} held-out rows" * bool(held_out)
    )
    return ["## Scores", f"{note}.", "\n".join(["| metric | value |", "| --- | ---: |", *rows])]


def _training(plan: Plan, record: Mapping[str, Any]) -> list[str]:
    parameters, data = record.get("parameters") or {}, record.get("data") or {}
    rows = {
        "method": method_text(plan),
        "objective": plan.objective.slug if plan.objective else "supervised",
        "trained parameters": _share(parameters),
        "rows": f"{data['train_rows']:,}" if data.get("train_rows") else None,
        "length": steps_text(record) if record.get("steps") else None,
        "learning rate": f"{plan.learning_rate:g} ({plan.lr_scheduler_type})",
        "rows a step": plan.effective_batch_size,
        "precision": " with ".join(x for x in (plan.quantization, plan.mixed_precision or plan.dtype) if x),
        "seed": plan.seed,
        "peak memory": _gib(record),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return ["## Training", "\n".join(["| | |", "| --- | --- |", *lines])]


def _share(parameters: Mapping[str, Any]) -> str | None:
    trained, total = parameters.get("trainable"), parameters.get("total")
    return f"{trained:,} of {total:,} ({100 * trained / total:.2g} %)" if trained and total else None


def _gib(record: Mapping[str, Any]) -> str | None:
    measured = (record.get("measured") or {}).get("memory") or {}
    size = measured.get("device_bytes")
    return f"{size / 2**30:.2f} GiB" if size else None


def _use(plan: Plan) -> list[str]:
    lines = ["import tunekit", "", 'model, tokenizer, plan = tunekit.reopen("this-folder")']
    return ["## Use", "```python\n" + "\n".join(lines) + "\n```"]
