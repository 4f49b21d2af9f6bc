"""What was learnt, folded into a plain model on disk, with the difference that it makes to the answers measured and said."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunekit.attach import load
from tunekit.attach import merge as fold
from tunekit.errors import MissingError, OccupiedError, TunekitError, UnsupportedError
from tunekit.finding import error
from tunekit.material import gather
from tunekit.plan import Plan
from tunekit.pretrained import form_of, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

Into = Literal["base", "dequantized"]
_ROWS = 8
"""Rows that are answered before and after."""
_TOKENS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """A merged model on disk, and how far its answers are from those of the model that was trained.

    Example:
        >>> told = Merged(folder="out", into="base", dtype="bfloat16", quantization="nf4", measured_on="8 training rows",
        ...               largest_logit=10.0, max_difference=0.5, mean_difference=0.01, same_answer=0.99)
        >>> print(told)
        merged into the base in bfloat16: out
        logits against the trained model (nf4 base) on 8 training rows: 0.01 apart on average, 0.5 at most (the largest is 10); 99.0 % same answer
    """

    folder: str
    into: Into
    dtype: str
    quantization: str | None
    """How the base was quantised while it was trained on."""
    measured_on: str
    largest_logit: float
    max_difference: float
    mean_difference: float
    same_answer: float
    """Share of positions whose most likely answer is the same."""

    def __str__(self) -> str:
        base = f"{self.quantization} base" if self.quantization else "adapter attached"
        where = "the base" if self.into == "base" else f"the dequantised {self.quantization} base"
        return (
            f"merged into {where} in {self.dtype}: {self.folder}\n"
            f"logits against the trained model ({base}) on {self.measured_on}: {self.mean_difference:.2g} apart on average, "
            f"{self.max_difference:.2g} at most (the largest is {self.largest_logit:.4g}); {self.same_answer:.1%} same answer"
        ).replace("%", " %")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": "tunekit-merged", **asdict(self)}


def merge(folder: str | Path, output: str | Path, *, into: Into = "base", overwrite: bool = False) -> Merged:
    """Folds what a run learnt into a plain model with safetensors and tokenizer, for anything that loads a transformers model.

    A base that was quantised while it was trained on is never quantised again: the change goes into the base as it was
    published (`base`), whose weights the adapter has never seen, or into the weights that it has seen, dequantised
    (`dequantized`), which keeps the answers and the rounding of the base. Which is better is an empirical question; the
    answers of either are compared with those of the model that was trained, and the difference is returned.

    Args:
        folder: The output folder of `tunekit train`, or one of its checkpoints with `plan.yaml` beside or above it.
        output: Where the merged model goes.
        into: `base`, or `dequantized` for a run with `quantization`.
        overwrite: Whether a folder that holds something may be replaced.

    Raises:
        MissingError: `merge-plan`, where no plan lies beside what was learnt.
        OccupiedError: `output-occupied`.
        UnsupportedError: `merge-not-quantized`, `method-no-merge`.

    Example:
        >>> import tunekit
        >>> tunekit.merge("./nowhere", "./merged")
        Traceback (most recent call last):
        ...
        tunekit.errors.MissingError: [merge-plan] folder 'nowhere': there is no plan.yaml in it or above it. ...

    References:
        Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023.
    """
    import torch

    learnt, output = Path(folder), Path(output)
    plan = _plan(learnt)
    _check(plan, output, into, overwrite)
    labels, rows, measured_on = _material(plan)
    form = form_of(plan)
    trained = load(load_model(plan, form=form, **labels), learnt, task=form)
    before = _answers(trained, rows)
    if plan.quantization is None:
        merged = fold(trained)
    else:
        del trained
        base = load_model(plan if into == "dequantized" else plan.replace(quantization=None), form=form, **labels)
        if into == "dequantized":
            base = _dequantized(base, getattr(torch, plan.dtype))
        merged = fold(load(base, learnt, task=form))
    after = _answers(merged, rows)
    _write(merged, plan, output)
    apart = (after - before).abs()
    return Merged(
        folder=str(output), into=into, dtype=plan.dtype, quantization=plan.quantization, measured_on=measured_on,
        largest_logit=float(before.abs().max()), max_difference=float(apart.max()), mean_difference=float(apart.mean()),
        same_answer=float((after.argmax(-1) == before.argmax(-1)).float().mean()),
    )  # fmt: skip


def _plan(folder: Path) -> Plan:
    for place in (folder, folder.parent):
        if (place / "plan.yaml").is_file():
            return Plan.load(place / "plan.yaml").replace(num_processes=1, num_machines=1, sharding=None, offload=None)
    raise MissingError(
        error(
            "merge-plan", f"folder {str(folder)!r}", "there is no plan.yaml in it or above it",
            "name the output folder of `tunekit train`, or load by `tunekit.load` and merge the live model by `tunekit.attach.merge`",
        )
    )  # fmt: skip


def _check(plan: Plan, output: Path, into: Into, overwrite: bool) -> None:
    if into == "dequantized" and plan.quantization is None:
        raise UnsupportedError(
            error("merge-not-quantized", "into `dequantized` of a run without `quantization`", "there is nothing to dequantise", "merge into `base`")
        )  # fmt: skip
    if not plan.method.merges:
        raise UnsupportedError(
            error("method-no-merge", f"merge of `{plan.method.slug}`", "what was learnt is no change of the base's weights", "keep it attached")
        )  # fmt: skip
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise OccupiedError(
            error("output-occupied", f"output folder {str(output)!r}", "it is not empty", "name a new folder, or allow overwriting")
        )  # fmt: skip


def _material(plan: Plan) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
    """The head's labels; rows to answer; what they are. Random tokens where the plan's rows are not at hand and no head needs them."""
    import torch

    from tunekit.data.collate import collator
    from tunekit.task import Task

    task = form_of(plan)
    try:
        found = (
            gather(plan) if task == Task.named(plan.task) else None
        )  # prompts' rows are no rows of the model's own form
    except TunekitError:
        if task.has_head:
            raise
        found = None
    if found is None:
        tokens = torch.randint(
            6,
            len(load_tokenizer(plan.model, plan.revision)),
            (_ROWS, _TOKENS),
            generator=torch.Generator().manual_seed(0),
        )
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return {}, {**inputs, "labels": tokens} if task.name == "seq2seq" else inputs, f"{_ROWS} rows of random tokens"
    pad = found.tokenizer.pad_token_id
    labels = {
        "num_labels": found.num_labels,
        "label_names": found.label_names,
        "problem_type": found.problem_type,
        "pad_token_id": pad,
    }
    some = found.train.select(range(min(_ROWS, len(found.train))))
    return labels, collator(task, found.tokenizer)(list(some)), f"{len(some)} training rows"


def _answers(model: nn.Module, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits in 32 bits."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        out = model(**{k: v.to(device) for k, v in rows.items()})
    if "logits" in out:
        return out["logits"].float().cpu()
    return torch.stack([out["start_logits"], out["end_logits"]]).float().cpu()


def _dequantized(model: Any, dtype: torch.dtype) -> Any:
    """The same weights as plain ones, with no trace of the quantisation in the configuration."""
    plain = model.dequantize(dtype=dtype)
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(plain).pop(name, None)
    return plain


def _write(model: Any, plan: Plan, output: Path) -> None:
    """Written beside its place and renamed, so that a part of a model never lies there."""
    aside = output.with_name(f".{output.name}.merging")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.save_pretrained(aside)
        load_tokenizer(plan.model, plan.revision).save_pretrained(aside)
        if output.exists():
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
