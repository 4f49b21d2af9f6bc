"""Rows against the model's sizes: longer than the context, tokens past the embedding."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    longest = max((len(r.ids) for r in subject.train), default=0)
    context = getattr(subject.config, "max_position_embeddings", None)
    if isinstance(context, int) and longest > context > 0:
        yield error(
            "length-over-context", f"a row of {longest:,} tokens with a context of {context:,}",
            "positions past the context were never trained (learnt ones end in an index error)", f"truncate to {context:,} tokens",
        )  # fmt: skip
    get = getattr(subject.task_model, "get_input_embeddings", None)
    rows = getattr(get() if get else None, "num_embeddings", None)
    highest = max((max(r.ids, default=0) for r in subject.train), default=0)
    if rows and highest >= rows:
        yield error(
            "tokens-over-vocabulary", f"token {highest:,} with {rows:,} embeddings", "the embedding would be indexed past its end",
            "`model.resize_token_embeddings(len(tokenizer))`, or use the model's own tokenizer",
        )  # fmt: skip
    yield from _resized(subject, rows)


def _resized(subject: Subject, rows: int | None) -> Iterator[Finding]:
    """Tokens were added and PEFT was not told to train and keep their rows."""
    config, tokenizer = subject.peft_config, subject.tokenizer
    if config is None or rows is None or not hasattr(tokenizer, "get_added_vocab"):
        return
    own = getattr(tokenizer, "vocab_size", rows)
    added = sorted(i for i in tokenizer.get_added_vocab().values() if i >= own)
    used = {t for r in subject.train for t in r.ids}
    embedding = subject.task_model.get_input_embeddings()
    learns = any(p.requires_grad for p in embedding.parameters())
    if added and used & {*added} and not learns:
        yield warning(
            "embeddings-unsaved", f"{len(added)} tokens were added and their embeddings neither learn nor are saved",
            "they stay random, and are random anew when the adapter is loaded",
            'name the embedding in `modules_to_save`, or its rows in `trainable_token_indices`',
        )  # fmt: skip


CHECK = Check(
    slug="tokens",
    title="Rows longer than the context; tokens past the embedding; added tokens that are not kept.",
    codes=("length-over-context", "tokens-over-vocabulary", "embeddings-unsaved"),
    look=_look,
)
