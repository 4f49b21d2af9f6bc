"""Activation checkpointing that loses gradients, or that cannot go with a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.finding import Finding, error
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    on = _setting(subject, "") or getattr(subject.task_model, "is_gradient_checkpointing", False)
    if not on:
        return
    kind = str(getattr(getattr(subject.peft_config, "peft_type", None), "value", ""))
    if kind == "PREFIX_TUNING":
        yield error(
            "checkpointing-prefix", "PEFT's prefix tuning with gradient checkpointing",
            "the prefix lives in the key-value cache, which checkpointing switches off",
            "switch checkpointing off, or use `tunekit.methods.PrefixTuning`",
        )  # fmt: skip
    settings = _setting(subject, "_kwargs") or {}
    get = getattr(subject.task_model, "get_input_embeddings", None)
    embedding = get() if get else None
    frozen = embedding is not None and not any(p.requires_grad for p in embedding.parameters())
    hooks = embedding is not None and bool(embedding._forward_hooks)
    if settings.get("use_reentrant") and frozen and not hooks:
        yield error(
            "checkpointing-no-input-gradients", "re-entrant gradient checkpointing over a frozen embedding",
            "the input of a block asks for no gradient, so the block's weights get none",
            'pass `gradient_checkpointing_kwargs={"use_reentrant": False}`, or call `model.enable_input_require_grads()`',
        )  # fmt: skip


def _setting(subject: Subject, ending: str) -> Any:
    """A setting under the newer or the older of transformers' names."""
    names = (f"activation_checkpointing{ending}", f"gradient_checkpointing{ending}")
    return next((v for n in names if (v := getattr(subject.args, n, None))), None)


CHECK = Check(
    slug="checkpointing",
    title="Checkpointing without input gradients, or with PEFT's prefix tuning.",
    codes=("checkpointing-prefix", "checkpointing-no-input-gradients"),
    look=_look,
)
