"""Whether the optimizer holds what will ever learn."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, error
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    groups = getattr(subject.optimizer, "param_groups", None)
    if groups is None or str(getattr(subject.args.distributed_state, "distributed_type", "")).endswith(
        ("DEEPSPEED", "FSDP")
    ):
        return
    held = {id(p) for g in groups for p in g["params"]}
    named = [(n, p) for n, p in subject.model.named_parameters() if p.requires_grad]
    missing = [n for n, p in named if id(p) not in held]
    if missing:
        yield error(
            "optimizer-misses", f"{len(missing)} trainable parameters are not in the optimizer, such as `{missing[0]}`",
            "they get gradients and never move", "make the optimizer after freezing and after adapters are attached",
        )  # fmt: skip
    ours = {id(p) for p in subject.model.parameters()}
    strange = sum(id(p) not in ours for g in groups for p in g["params"])
    if strange:
        yield error(
            "optimizer-strangers", f"{strange} tensors in the optimizer belong to no parameter of the model",
            "they are those of a model that was replaced or moved, and what runs is not updated",
            "make the optimizer from the model that is handed to the Trainer",
        )  # fmt: skip


CHECK = Check(
    slug="optimizer-holds",
    title="The optimizer does not hold exactly the trainable set.",
    codes=("optimizer-misses", "optimizer-strangers"),
    look=_look,
)
