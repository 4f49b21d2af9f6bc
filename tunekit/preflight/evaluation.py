"""An evaluation that holds on to every logit; losses that accumulation weighs wrongly."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    import psutil

    size, room = _logit_bytes(subject), psutil.virtual_memory().available
    if subject.keeps_logits and size > 0.5 * room:
        yield warning(
            "evaluation-logits", f"the logits of {subject.num_eval:,} evaluation rows are {size / 2**30:.1f} GiB",
            f"they are held until the metric is computed, and {room / 2**30:.1f} GiB are free",
            "pass `preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1)`, or `batch_eval_metrics=True`",
        )  # fmt: skip


def _logit_bytes(subject: Subject) -> int:
    """Rows x length x vocabulary in float32, as the Trainer gathers them; lengths are those of the training rows."""
    vocabulary = getattr(subject.config, "vocab_size", None)
    if not vocabulary or not subject.num_eval or not subject.train or not subject.writes:
        return 0
    longest = max(len(r.labels) if r.by_position else len(r.ids) for r in subject.train)
    return subject.num_eval * longest * vocabulary * 4


CHECK = Check(
    slug="evaluation", title="Evaluation logits x vocabulary over memory.", codes=("evaluation-logits",), look=_look
)
