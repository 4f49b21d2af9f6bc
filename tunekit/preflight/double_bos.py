"""Two begin tokens: a chat template wrote one and the tokenizer added another."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    bos = getattr(subject.tokenizer, "bos_token_id", None)
    bos = getattr(subject.config, "bos_token_id", None) if bos is None else bos
    double = sum(bos is not None and r.ids[:2] == (bos, bos) for r in subject.train)
    if double:
        yield warning(
            "double-bos", f"{double} of {len(subject.train)} rows begin with the begin token ({bos}) twice",
            "the model has never seen that, and the prompt at inference begins with one",
            "tokenize the chat template's text with `add_special_tokens=False`",
        )  # fmt: skip


CHECK = Check(slug="double-bos", title="Rows begin with two begin tokens.", codes=("double-bos",), look=_look)
