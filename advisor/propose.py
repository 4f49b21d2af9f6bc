"""Candidate plans: every discovered method under its own recipe, with the knobs that the facts decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tunekit.advice import Entry
from tunekit.advisor.candidates import Candidate, candidates
from tunekit.advisor.stopping import stopping
from tunekit.contracts import Method, Recipe, learnt_form
from tunekit.finding import Finding
from tunekit.plan import DataSpec, Plan
from tunekit.sharding import sharding_faults
from tunekit.workload import Workload

LARGE_PARAMETERS = 1_000_000_000
"""From here on a frozen base is held in 16 bits from the start; below, fp32 costs little."""
_LENGTH_SHARE = 0.995
"""Share of the rows that are kept whole where a few outliers would set the memory of the whole run."""
_OUTLIER = 1.25
_KEPT_GAIN = 1.3
"""Layers that a run must pass fewer by for the answers of its frozen ones to be kept."""
_KEPT_MEMORY = 0.25
"""Share of the host's memory that they may take unasked."""
_EVAL_SHARE = 0.1
_EVAL_MOST = 5000
"""Rows after which a score is good to 0.7 points."""
_EVAL_FROM = 200
"""With fewer rows than this none are held out unasked."""


def propose(workload: Workload, methods: Iterable[str] | None = None) -> tuple[tuple[Plan, ...], tuple[Entry, ...]]:
    """Plans at their preferred settings, and the methods that cannot work here with the reason.

    Whether a plan fits is not asked here; `tunekit.advisor.fit` finds the settings under which it does.

    Args:
        workload: The question.
        methods: Names to restrict the candidates to; None compares every method that is installed.

    Raises:
        InvalidError: `method-unknown`, `method-needs-settings`, for every name at once.
    """
    plans: list[Plan] = []
    refused: list[Entry] = []
    for candidate in candidates(workload, methods):
        plan = make_plan(workload, candidate.method, candidate)
        finding = _unsuited(workload, plan)
        if finding is None:
            plans += [plan, *_smaller(workload, plan)]
        else:
            refused.append(Entry(plan=plan, memory=None, duration=None, findings=(finding,)))
    return tuple(plans), tuple(refused)


def _unsuited(workload: Workload, plan: Plan) -> Finding | None:
    """Why method or objective cannot work here, whatever the knobs."""
    taught = None if plan.objective is None else plan.objective.supports(workload.model, workload.task)
    return taught or refusal(workload, plan.replace(sharding=None, num_processes=1, num_machines=1))


def _smaller(workload: Workload, plan: Plan) -> list[Plan]:
    """Where the goal is memory, the plan on a 4-bit base beside it, whether or not a 16-bit one fits."""
    if workload.goal != "memory" or plan.method.trains_base or plan.quantization is not None:
        return []
    smaller = plan.replace(**quantized(workload, "nf4"))
    return [smaller] if refusal(workload, smaller) is None else []


def quantized(workload: Workload, quantization: str) -> Mapping[str, Any]:
    """The knobs of a quantised base: it computes in 16 bits."""
    brain = workload.hardware.bf16 or workload.hardware.device == "cpu"
    half, mixed = ("bfloat16", "bf16") if brain else ("float16", "fp16")
    return {"quantization": quantization, "dtype": half, "mixed_precision": mixed}


def make_plan(workload: Workload, method: Method, candidate: Candidate | None = None) -> Plan:
    """The plan of one method under its own recipe, at the settings that would be preferred if memory did not matter."""
    recipe = method.recipe(workload)
    candidate = candidate or Candidate(method=method)
    knobs = dict(precision(workload, method))
    if candidate.quantization is not None:
        knobs |= quantized(workload, candidate.quantization)
    devices = workload.hardware.total_devices
    data = _data_spec(workload)
    epochs = candidate.num_train_epochs or recipe.num_train_epochs
    rows = rows_per_device(recipe, workload)
    evaluated = stopping(workload, held_out(workload), epochs, method.trains_base)
    return Plan(
        model=workload.model.name,
        revision=workload.model.revision,
        task=workload.task.name,
        problem_type=workload.data.problem_type,
        data=data,
        output_dir=f"runs/{candidate.objective.slug if candidate.objective else method.slug}",
        method=method,
        objective=candidate.objective,
        max_length=max_length(workload),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows if workload.task.name in ("causal-lm", "seq2seq") else 2 * rows,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup=recipe.warmup,
        num_train_epochs=epochs,
        eval_interval=evaluated.eval_interval,
        early_stopping_patience=evaluated.early_stopping_patience,
        loss_kernel=loss_kernel(workload, candidate),
        frozen_activations=frozen_activations(workload, candidate, epochs),
        optim="adamw_torch_fused",
        num_processes=devices,
        num_machines=workload.hardware.num_machines,
        sharding="ddp" if devices > 1 else None,
        **knobs,
    )


def loss_kernel(workload: Workload, candidate: Candidate) -> Literal["plain", "chunked"]:
    """The loss over a vocabulary in chunks: never slower, and without logits that nothing learns from.

    Measured on a CPU (`benchmarks/data_path.py`; 30,522 words): a step on instructions, of whose tokens half are answers, takes
    0.71 of the time of the plain loss, one on gsm8k (two thirds) 0.88.
    """
    written = workload.task.name in ("causal-lm", "seq2seq")
    return "chunked" if written and candidate.objective is None else "plain"


def frozen_activations(workload: Workload, candidate: Candidate, epochs: float) -> Literal["recomputed", "cached"]:
    """Whether what frozen layers say of a row is kept over the epochs: where it saves much, is known to fit and can work.

    Of L layers of which the last k learn, a row costs L forward and 2 k backward; with the answers kept 3 k, and L once.
    Measured on a CPU (`benchmarks/frozen_activations.py`, six layers, ten epochs): the last one alone 2.5 times as fast as without.
    """
    layers, frozen = workload.model.num_layers, candidate.method.frozen_layers(workload.model)
    one = workload.hardware.total_devices == 1 and workload.model.side != "seq2seq" and candidate.objective is None
    if not frozen or not one or not workload.data.lengths:
        return "recomputed"
    learn = layers - frozen
    gain = (layers + 2 * learn) / (3 * learn + layers / epochs)
    tokens = (workload.data.num_examples + workload.data.num_eval_examples) * workload.data.mean_tokens
    size_bytes = 4 * tokens * workload.model.hidden_size
    room = workload.hardware.host_memory_bytes or workload.hardware.memory_bytes
    return "cached" if gain >= _KEPT_GAIN and size_bytes <= _KEPT_MEMORY * room else "recomputed"


def rows_per_device(recipe: Recipe, workload: Workload) -> int:
    """Rows of one optimizer step on one device, so that all devices together see the recipe's effective batch."""
    return max(1, round(recipe.effective_batch_size / workload.hardware.total_devices))


def precision(workload: Workload, method: Method) -> Mapping[str, Any]:
    """`dtype` and `mixed_precision`: trained weights in fp32 under autocast, a large frozen base in 16 bits.

    bfloat16 where the device multiplies it natively: half precision overflowed in a fifth of QLoRA's 7B runs.
    """
    if workload.hardware.device == "cpu":
        return {"dtype": "float32", "mixed_precision": None}
    half, mixed = ("bfloat16", "bf16") if workload.hardware.bf16 else ("float16", "fp16")
    small = workload.model.num_parameters < LARGE_PARAMETERS
    return {"dtype": "float32" if method.trains_base or small else half, "mixed_precision": mixed}


def max_length(workload: Workload) -> int | None:
    """Truncation in tokens: what the user demanded, else the longest row without the odd outlier; None where unknown."""
    context = workload.model.context_length or 10**9
    if workload.max_length is not None:
        return min(workload.max_length, context)
    longest = max([workload.data.max_tokens, *workload.data.target_lengths[-1:]])
    if longest == 0:
        return None if workload.model.context_length is None else context
    usual = max(workload.data.quantile_tokens(_LENGTH_SHARE), *workload.data.target_lengths[-1:], 1)
    wanted = longest if longest <= _OUTLIER * usual else usual
    return min(-(-wanted // 8) * 8, context)


def _data_spec(workload: Workload) -> DataSpec | None:
    data = workload.data
    if workload.data_source is None:
        return None
    return DataSpec(
        path=workload.data_source,
        columns=dict(data.columns),
        label_names=data.label_names,
        eval_share=_eval_share(workload),
        fingerprint=data.fingerprint or None,
    )


def _eval_share(workload: Workload) -> float:
    """Share of the training rows to hold out where there is no split for it: a tenth, of many rows as much as tells a point."""
    data = workload.data
    if data.num_eval_examples or data.num_examples < _EVAL_FROM:
        return 0.0
    return float(f"{min(_EVAL_SHARE, _EVAL_MOST / data.num_examples):.2g}")


def held_out(workload: Workload) -> int:
    """Rows that a plan of this question is evaluated on; 0 where none are known before a dataset is handed over."""
    share = _eval_share(workload) if workload.data_source is not None else 0.0
    return workload.data.num_eval_examples or round(share * workload.data.num_examples)


def refusal(workload: Workload, plan: Plan) -> Finding | None:
    """Why the plan cannot work under its quantisation and sharding, or None: what the assembly would refuse too."""
    form = learnt_form(plan.objective, workload.task, workload.model.side)
    # The finding of the method itself says more than that of the sharding.
    method = plan.method.supports(
        workload.model, form, plan.objective, quantization=plan.quantization, sharding=plan.sharding
    )
    return method or next(iter(sharding_faults(plan)), None)
