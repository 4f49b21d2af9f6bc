"""Answers cut off by the maximum length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tunekit.finding import Finding, warning
from tunekit.preflight._check import Check
from tunekit.preflight._stop import stop_tokens
from tunekit.preflight._subject import Subject

_SHARE = 0.03


def _look(subject: Subject) -> Iterator[Finding]:
    """Rows pile up at one length, the greatest, and there the end that the others have is missing."""
    rows, stops = [r for r in subject.train if r.ids], stop_tokens(subject)
    if not subject.writes or not stops or len({len(r.ids) for r in rows}) < 3:
        return
    answers = [tuple(x for x in r.labels if x >= 0) if r.by_position else () for r in rows]
    texts = answers if getattr(subject.config, "is_encoder_decoder", False) else [r.ids for r in rows]
    longest, count = max(Counter(map(len, texts)).items())
    cut = [t for t in texts if len(t) == longest and t[-1] not in stops]
    whole = [t for t in texts if t and len(t) < longest]
    ended = sum(t[-1] in stops for t in whole)
    if len(cut) >= max(2, _SHARE * len(texts)) and len(cut) > 0.9 * count and ended > 0.5 * len(whole):
        wanted = _wanted(subject, longest)
        fix = (
            f"a length of {wanted} keeps 99 % of the rows whole"
            if wanted
            else "raise the maximum length, or drop these rows"
        )
        yield warning(
            "truncation-cuts", f"{len(cut)} of {len(texts)} rows stop at {longest} tokens without an end",
            "the answer is cut, and the model learns to break off", fix,
        )  # fmt: skip


def _wanted(subject: Subject, longest: int) -> int | None:
    """The length that keeps 99 % of the rows, from the text beside the tokens; None where it is gone."""
    texts = [r.get("text") for r in subject.raw]
    if not subject.tokenizer or not texts or not all(isinstance(t, str) for t in texts):
        return None
    lengths = sorted(len(ids) + 1 for ids in subject.tokenizer(texts, truncation=False, verbose=False)["input_ids"])
    wanted = lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]
    return wanted if wanted > longest else None


CHECK = Check(slug="truncation", title="Answers cut off by the maximum length.", codes=("truncation-cuts",), look=_look)
