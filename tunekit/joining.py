"""Joining: the data path of a causal-lm that a plan asks for or its kernel allows: packed, laid end to end, or padded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunekit.data.packing import marked, pack, row_sizes
from tunekit.errors import UnsupportedError, raise_all
from tunekit.packable import mixing_fault
from tunekit.plan import Plan

if TYPE_CHECKING:
    from torch import nn


def lies_flat(plan: Plan) -> bool:
    """Whether rows may be laid end to end in one row: flash kernels take examples of any length, others would pay for the
    whole square of the joined length."""
    objective = plan.objective
    joins = plan.task == "causal-lm" and plan.method.packs and (objective is None or objective.packs)
    return joins and "flash" in (plan.attn_implementation or "")


def told_apart(plan: Plan, rows: Any, model: nn.Module) -> Any:
    """The training rows as the plan's data path wants them: joined, marked for a flat batch, or as they are.

    Raises:
        UnsupportedError: `packing-architecture`, where joined rows do not stay apart in the model as it stands.
        InvalidError: `packing-labels`.
    """
    if plan.packing:
        raise_all([f for f in [mixing_fault(model)] if f is not None], UnsupportedError)
        return pack(rows, plan.max_length or max(row_sizes(rows)), plan.seed)
    if lies_flat(plan) and "labels" in rows.column_names and mixing_fault(model) is None:
        return marked(rows)
    return rows
