"""Trainable parameters that the loss does not depend on, under DistributedDataParallel that waits for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunekit.finding import Finding, error
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject

if TYPE_CHECKING:
    import torch


def _look(subject: Subject) -> Iterator[Finding]:
    if not _waits_for_all(subject) or subject.batch is None:
        return
    used = _used(subject)
    idle = [n for n, p in subject.model.named_parameters() if p.requires_grad and id(p) not in used]
    if used and idle:
        yield error(
            "ddp-unused", f"{len(idle)} trainable parameters take no part in the loss, such as `{idle[0]}`, in {subject.args.world_size} processes",
            "DistributedDataParallel waits for the gradient of each and fails in the second step",
            "freeze them (`requires_grad_(False)`), or pass `ddp_find_unused_parameters=True`",
        )  # fmt: skip


def _waits_for_all(subject: Subject) -> bool:
    """Whether the Trainer will wrap the model so that every parameter is waited for; its own rule where nothing is said."""
    from transformers import PreTrainedModel

    from tunekit.structure import unwrapped

    args = subject.args
    kind = str(getattr(getattr(args, "distributed_state", None), "distributed_type", ""))
    if args.world_size <= 1 or kind.endswith(("DEEPSPEED", "FSDP")):
        return False
    if args.ddp_find_unused_parameters is not None:
        return not args.ddp_find_unused_parameters
    on = getattr(args, "activation_checkpointing", False) or getattr(args, "gradient_checkpointing", False)
    return bool(on) and isinstance(unwrapped(subject.model), PreTrainedModel)


def _used(subject: Subject) -> set[int]:
    """Ids of the parameters that the loss of two rows depends on, by the graph that backward would walk."""
    import torch

    from tunekit.preflight._read import untouched_random_numbers

    model, device = subject.model, next(subject.model.parameters()).device
    modes = [(m, m.training) for m in model.modules()]
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in (subject.batch or {}).items()}
    try:
        model.eval()  # the graph is the same without dropout, and no running mean moves
        with untouched_random_numbers(), torch.enable_grad():
            loss = model(**inputs)["loss"]
        return _leaves(loss)
    finally:
        for module, mode in modes:
            module.training = mode


def _leaves(loss: torch.Tensor) -> set[int]:
    found: set[int] = set()
    seen: set[Any] = set()
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        ahead += [n for n, _ in node.next_functions]
    return found


CHECK = Check(
    slug="ddp-unused",
    title="Trainable parameters that DistributedDataParallel would wait for in vain.",
    codes=("ddp-unused",),
    look=_look,
)
