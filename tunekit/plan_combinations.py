"""Values of a plan that cannot go together, as far as that can be told without a model, data or a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunekit.finding import Finding, error

if TYPE_CHECKING:
    from tunekit.plan import Plan

Rule = tuple[bool, str, str, str, str]
"""Whether it is broken; the fault's code, what was seen, why that cannot be, and the way out."""


def combination_faults(plan: Plan) -> list[Finding]:
    """One fault for each pair of values that cannot go together."""
    groups = (_activations, _packing, _losses, _quantised, _processes, _offloads)
    return [error(*said) for group in groups for broken, *said in group(plan) if broken]


def _own_objective(plan: Plan) -> str | None:
    """The name of the objective where it is another than the task's own loss."""
    return None if plan.objective is None or plan.objective.slug == "supervised" else plan.objective.slug


def _activations(plan: Plan) -> Iterator[Rule]:
    """What the kept answers of the frozen part cannot serve."""
    cached = plan.frozen_activations == "cached"
    yield (
        cached and plan.num_processes > 1,
        "plan-activations-processes",
        f"`frozen_activations: cached` with `num_processes: {plan.num_processes}`",
        "every process would need the answers to the rows of all",
        "set `frozen_activations: recomputed`, or `num_processes: 1`",
    )
    yield (
        cached and plan.packing,
        "plan-activations-packing",
        "`frozen_activations: cached` with `packing`",
        "what is kept belongs to whole rows",
        "set `frozen_activations: recomputed`, or `packing: false`",
    )
    yield (
        cached and _own_objective(plan) is not None,
        "plan-activations-objective",
        f"`frozen_activations: cached` with objective {_own_objective(plan)}",
        "it asks the model in ways of its own",
        "set `frozen_activations: recomputed`",
    )


def _packing(plan: Plan) -> Iterator[Rule]:
    """What cannot see joined rows."""
    yield (
        plan.packing and plan.task != "causal-lm",
        "plan-packing-task",
        f"`packing` with task {plan.task}",
        "only rows of a causal-lm can be joined",
        "set `packing: false`",
    )
    yield (
        plan.packing and not plan.method.packs,
        "plan-packing-method",
        f"`packing` with method {plan.method.slug}",
        "what it puts in front of a row would be in front of the first of the joined ones only",
        "set `packing: false`",
    )
    yield (
        plan.packing and plan.objective is not None and not plan.objective.packs,
        "plan-packing-objective",
        f"`packing` with objective {_own_objective(plan)}",
        "it reads a row as one text, from its first token on",
        "set `packing: false`",
    )


def _losses(plan: Plan) -> Iterator[Rule]:
    """What has no such loss."""
    chunked = plan.loss_kernel == "chunked"
    yield (
        chunked and plan.task not in ("causal-lm", "seq2seq"),
        "plan-loss-kernel-task",
        f"`loss_kernel: chunked` with task {plan.task}",
        "only the loss over a vocabulary is worth taking in chunks",
        "set `loss_kernel: plain`",
    )
    yield (
        chunked and _own_objective(plan) is not None,
        "plan-loss-kernel-objective",
        f"`loss_kernel: chunked` with objective {_own_objective(plan)}",
        "it has a loss of its own, over a vocabulary in pieces where it has one",
        "set `loss_kernel: plain`",
    )
    yield (
        plan.problem_type is not None and plan.task != "sequence-classification",
        "plan-problem-type-task",
        f"`problem_type` with task {plan.task}",
        "only sequence-classification has one",
        "remove `problem_type`",
    )


def _quantised(plan: Plan) -> Iterator[Rule]:
    """What quantised weights cannot do."""
    yield (
        plan.quantization is not None and plan.method.trains_base,
        "plan-quantized-base",
        f"`quantization: {plan.quantization}` with method {plan.method.slug}",
        "quantised weights cannot be trained",
        "use `method: {kind: lora}`, or `quantization: null`",
    )


def _processes(plan: Plan) -> Iterator[Rule]:
    """How many processes there are, and how they share."""
    yield (
        plan.num_processes > 1 and plan.sharding is None,
        "plan-sharding-missing",
        f"`num_processes: {plan.num_processes}` without `sharding`",
        "several processes must share the work somehow",
        "set `sharding: ddp`",
    )
    yield (
        plan.num_processes == 1 and plan.sharding is not None,
        "plan-sharding-single",
        f"`sharding: {plan.sharding}` with one process",
        "there is nobody to share with",
        "set `sharding: null`, or `num_processes` above 1",
    )
    yield (
        plan.num_processes % plan.num_machines != 0,
        "plan-machines",
        f"`num_processes: {plan.num_processes}` on {plan.num_machines} machines",
        "every machine runs the same number",
        f"set `num_processes` to a multiple of {plan.num_machines}",
    )


def _offloads(plan: Plan) -> Iterator[Rule]:
    """What is left on the host, and by whom."""
    sharding = plan.sharding or ""
    yield (
        plan.offload is not None and not sharding.startswith("zero"),
        "plan-offload-sharding",
        f"`offload: {plan.offload}` with `sharding: {plan.sharding or 'null'}`",
        "offloading is DeepSpeed's",
        "set `sharding: zero2` or `zero3`",
    )
    yield (
        plan.offload == "parameters" and sharding in ("zero1", "zero2"),
        "plan-offload-stage",
        f"`offload: parameters` with {sharding}",
        "parameters are only sharded by ZeRO-3",
        "set `sharding: zero3`",
    )
