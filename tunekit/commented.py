"""A plan as YAML in which a comment at each value says why it is what it is."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from tunekit.advice import Entry
from tunekit.advice_text import duration, memory, method_text
from tunekit.field_docs import settings_of
from tunekit.plan import Plan
from tunekit.plan_file import to_yaml
from tunekit.workload import Workload

_WIDTH = 100


def commented(entry: Entry, workload: Workload) -> str:
    """The plan of an entry as YAML that `tunekit.Plan.load` reads, with a comment above each value.

    Args:
        entry: A ranked entry of an advice.
        workload: The question that it answers.
    """
    values = entry.plan.to_dict()
    lines = [_comment(f"{method_text(entry.plan)}: {_predicted(entry)}"), ""]
    docs = settings_of(Plan)
    for name, value in values.items():
        reason = _WHY.get(name)
        said = (reason(entry, workload) if reason else "") or _as_yaml(docs.get(name, {}).get("text", ""))
        lines += [_comment(said)] if said else []
        parts = getattr(entry.plan, name, None) if name in ("method", "objective", "data") else None
        lines.append(to_yaml({name: value}).rstrip("\n") if parts is None else _block(name, value, parts))
    return "\n".join(lines) + "\n"


def _block(name: str, values: Mapping[str, Any], part: Any) -> str:
    """A mapping of settings, each under what it means."""
    docs, lines = settings_of(type(part)), [f"{name}:"]
    for key, value in values.items():
        said = _as_yaml(docs.get(key, {}).get("text", ""))
        lines += [textwrap.indent(_comment(said), "  ")] if said else []
        lines.append(textwrap.indent(to_yaml({key: value}).rstrip("\n"), "  "))
    return "\n".join(lines)


def _as_yaml(text: str) -> str:
    """A setting's description in one line, with YAML's word for Python's None.

    Example:
        >>> _as_yaml("None: read from  the labels.")
        'null: read from the labels.'
    """
    return re.sub(r"\bNone\b", "null", " ".join(text.split()))


def _comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _predicted(entry: Entry) -> str:
    if entry.memory is None or entry.duration is None:
        return "not simulated"
    return f"{memory(entry)} GiB at its peak and {duration(entry)} are predicted"


def _data(entry: Entry, workload: Workload) -> str:
    data = workload.data
    held = f", {data.num_eval_examples:,} more for evaluation" if data.num_eval_examples else ""
    share = entry.plan.data.eval_share if entry.plan.data else 0.0
    kept = f"; {share:.0%} of them are held out" if share else ""
    return f"{data.num_examples:,} rows of {data.mean_tokens:.0f} tokens on average{held}{kept}"


def _method(entry: Entry, workload: Workload) -> str:
    said = [f"{'+' if f.severity == 'favours' else '-'} {f.seen}" for f in entry.moving[:3]]
    return "; ".join(said) or "the first of the ranking"


def _length(entry: Entry, workload: Workload) -> str:
    longest = max([workload.data.max_tokens, *workload.data.target_lengths[-1:]])
    if not longest:
        return "no row's length is known: what the model's positions allow"
    cut = sum(n > (entry.plan.max_length or longest) for n in workload.data.lengths)
    return f"the longest row has {longest:,} tokens" + (
        f"; {cut} of {len(workload.data.lengths)} looked at are cut" if cut else ""
    )


def _dtype(entry: Entry, workload: Workload) -> str:
    if workload.hardware.device == "cpu":
        return "a CPU computes in 32 bits"
    return (
        "a frozen base needs no more than 16 bits"
        if entry.plan.dtype != "float32"
        else "what learns, or is small, is kept in 32 bits"
    )


def _mixed(entry: Entry, workload: Workload) -> str:
    if entry.plan.mixed_precision is None:
        return "computed in the weights' own precision"
    native = "multiplies bfloat16 natively" if workload.hardware.bf16 else "has no native bfloat16"
    return f"{workload.hardware.name} {native}"


def _quantization(entry: Entry, workload: Workload) -> str:
    return "it fits without" if entry.plan.quantization is None else "without it the weights alone would not fit"


def _batch(entry: Entry, workload: Workload) -> str:
    plan = entry.plan
    return f"the most that fits at this length; {plan.effective_batch_size} rows an optimizer step in all, as the recipe has it"


def _checkpointing(entry: Entry, workload: Workload) -> str:
    on = entry.plan.activation_checkpointing
    return (
        "trades about a third more time for the activations' memory, so that it fits or more rows do"
        if on
        else "it fits without"
    )


def _recipe(entry: Entry, workload: Workload) -> str:
    sources = entry.plan.method.recipe(workload).sources
    return "; ".join(sources)


def _epochs(entry: Entry, workload: Workload) -> str:
    return f"many passes over few rows, few over many; {workload.data.num_examples:,} here"


def _interval(entry: Entry, workload: Workload) -> str:
    return (
        "once an epoch, as often as passing the rows that many times needs"
        if entry.plan.eval_interval is None
        else "about ten times a run of few passes, so that the best moment is not missed; seldomer where many rows are held out"
    )


def _patience(entry: Entry, workload: Workload) -> str:
    if entry.plan.early_stopping_patience is None:
        return "null: no rows are held out, or too few evaluations to judge by"
    return (
        "the fewer rows, the noisier their score and the longer it waits; a quarter of the run at least, since small sets need "
        "more steps than is usual (Prechelt, 1998; Mosbach et al., 2021; Zhang et al., 2021)"
    )


def _warmup(entry: Entry, workload: Workload) -> str:
    return "the share of the steps in which the rate rises; a little longer on small sets"


def _processes(entry: Entry, workload: Workload) -> str:
    plan = entry.plan
    return (
        "one device"
        if plan.num_processes == 1
        else f"one a device, {plan.num_processes} in all on {workload.hardware.name}"
    )


def _sharding(entry: Entry, workload: Workload) -> str:
    if entry.plan.sharding is None:
        return "one process has nobody to share with"
    whole = entry.plan.sharding == "ddp"
    return (
        "each device holds the whole model: it fits, and is quickest"
        if whole
        else "what does not fit on one device is shared"
    )


def _frozen(entry: Entry, workload: Workload) -> str:
    plan, layers = entry.plan, workload.model.num_layers
    frozen = plan.method.frozen_layers(workload.model)
    if plan.frozen_activations == "cached":
        return f"rows go through the {frozen} frozen of {layers} layers once, and not in each of {plan.num_train_epochs:g} epochs"
    if frozen:
        return f"{frozen} of {layers} layers are frozen; keeping what they say of each row would save little here, or not fit"
    return "cached: rows go through the layers below the first that learns once, not at every step"


def _plain(text: str) -> Callable[[Entry, Workload], str]:
    return lambda entry, workload: text


_WHY: Mapping[str, Callable[[Entry, Workload], str]] = {
    "model": lambda e, w: f"{w.model.num_parameters:,} parameters, {w.model.side}",
    "task": _plain("read off the columns, unless you said so"),
    "method": _method,
    "data": _data,
    "output_dir": _plain("what is learnt, the record and the model card go here"),
    "objective": _plain("null: the labels or the answers in the rows are learnt") ,
    "max_length": _length,
    "packing": lambda e, w: "rows are joined to full sequences" if e.plan.packing else "batches of rows of like length leave little padding to save",
    "dtype": _dtype,
    "mixed_precision": _mixed,
    "quantization": _quantization,
    "per_device_train_batch_size": _batch,
    "per_device_eval_batch_size": _plain("nothing is kept for a backward pass, so more fit"),
    "gradient_accumulation_steps": _plain("smaller batches one after the other, up to the recipe's"),
    "activation_checkpointing": _checkpointing,
    "attn_implementation": _plain("null: transformers takes the quickest that the model has"),
    "optim": lambda e, w: "one kernel for the whole step" if "fused" in e.plan.optim else "AdamW, which every source of the rates used",
    "learning_rate": _recipe,
    "max_grad_norm": _plain("gradients longer than this are shortened to it; of the method's recipe"),
    "lr_scheduler_type": _plain("how the rate falls after its warm-up; of the method's recipe"),
    "weight_decay": _plain("of the method's recipe"),
    "num_train_epochs": _epochs,
    "warmup": _warmup,
    "seed": _plain("another seed moves the score by a point or so on small sets"),
    "loss_kernel": _plain("how the loss over the vocabulary is computed: plain, in chunks, or by Liger's kernel"),
    "eval_interval": _interval,
    "early_stopping_patience": _patience,
    "frozen_activations": _frozen,
    "num_machines": _plain("machines that share the run"),
    "offload": _plain("null: everything stays on the devices"),
    "num_processes": _processes,
    "sharding": _sharding,
}  # fmt: skip
