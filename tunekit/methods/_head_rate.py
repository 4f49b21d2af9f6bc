"""The head beside prompts and factors: their rates would be far too high for its weights, so it learns at its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunekit.contracts import Method
from tunekit.finding import Finding, error
from tunekit.workload import Workload

if TYPE_CHECKING:
    from torch import nn

RATIO = 0.1
"""Of the head's rate to that of vectors or factors that are learnt themselves. MiniLM (22 M parameters) on questions of
TREC, 200 steps: IA3 0.86 with the head at a twentieth against 0.73 at one rate, P-tuning v2 0.81 against 0.77."""
NETWORK_RATIO = 10.0
"""The same beside a network that makes the prompts: it learns slowly, since each of its weights moves every prompt. On tags
of WNUT 17 prefixes never learnt with both at 5e-4 to 4e-3 (attention ran into the prefixes within 60 steps, F1 .000); with
the network at 2e-4 and the head at three times that it is .000 still, at ten times .291."""
NETWORK_RATES = "measured on MiniLM: 2e-4 for the network and ten times that for the head (benchmarks/methods.py)"
RATES = "measured on MiniLM: rates up to 2e-2 where the head has a tenth of it (benchmarks/methods.py)"
_OWN = frozenset({"deep_prompt", "soft_prompt", "prompt_encoder"})
"""Modules that hold prompts: tunekit's two, and PEFT's."""


def faults(method: Any) -> list[Finding]:
    """What is wrong with `head_lr_ratio`."""
    ratio = method.head_lr_ratio
    if ratio is None or ratio > 0:
        return []
    seen = f"`head_lr_ratio` of `{type(method).__name__}` is {ratio}"
    return [error("head-lr-ratio", seen, "a learning rate is above 0", "set 0.1, 1, or leave it out")]


def direct_rate(workload: Workload) -> float:
    """Learning rate of vectors or factors themselves: 5e-3; beside a head 1e-2 at 125M parameters and the power -0.4 of
    the size, from 5e-3 to 2e-2."""
    if not workload.task.has_head:
        return 5e-3
    size = max(workload.model.num_parameters, 10**6)
    return float(f"{min(2e-2, max(5e-3, 1e-2 * (size / 125e6) ** -0.4)):.1e}")


def network_rate(workload: Workload) -> float:
    """Learning rate of a network that makes prompts: Li and Liang's 5e-5 at 355M parameters (GPT-2 medium) and above, and
    the power -0.5 of the size below, up to 2e-4."""
    size = max(workload.model.num_parameters, 10**6)
    return float(f"{min(2e-4, max(5e-5, 5e-5 * (size / 355e6) ** -0.5)):.1e}")


def groups(method: Any, model: nn.Module, rate: float, weight_decay: float, direct: bool) -> list[dict[str, Any]]:
    """The usual groups of the optimizer, with whatever is neither prompt nor factor at a rate of its own.

    Args:
        method: With its `head_lr_ratio`; None stands for 0.1 if `direct`, otherwise for 10.
        model: With the method on it.
        rate: The learning rate of the plan.
        weight_decay: Of the matrices.
        direct: Whether vectors or factors are learnt themselves, not a network that makes them.
    """
    ratio = method.head_lr_ratio if method.head_lr_ratio is not None else RATIO if direct else NETWORK_RATIO
    own = {id(p) for n, p in model.named_parameters() if not _OWN.isdisjoint(n.split(".")) or ".ia3_l" in n}
    made = []
    for group in Method.parameter_groups(method, model, rate, weight_decay):
        mine = [p for p in group["params"] if id(p) in own]
        head = [p for p in group["params"] if id(p) not in own]
        made += [{**group, "params": ps, "lr": lr} for ps, lr in ((mine, rate), (head, rate * ratio)) if ps]
    return made
