"""Which tokens end a text."""

from __future__ import annotations

from tunekit.preflight._subject import Subject


def stop_tokens(subject: Subject) -> frozenset[int]:
    """The ids that generation stops at, by model, generation settings and tokenizer."""
    sources = (
        getattr(subject.config, "eos_token_id", None),
        getattr(getattr(subject.task_model, "generation_config", None), "eos_token_id", None),
        getattr(subject.tokenizer, "eos_token_id", None),
    )
    return frozenset(i for s in sources if s is not None for i in (s if isinstance(s, list | tuple) else [s]))
