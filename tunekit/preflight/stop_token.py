"""Whether the model learns to stop."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._stop import stop_tokens
from tunekit.preflight._subject import IGNORED, Subject


def _look(subject: Subject) -> Iterator[Finding]:
    stops, rows = stop_tokens(subject), [r for r in subject.train if r.by_position and r.trained]
    if not subject.writes or not stops or len(rows) < 2 or any(stops & {*r.labels} for r in rows):
        return
    masked = [r for r in rows if any(t in stops and x == IGNORED for t, x in _ends(r.ids, r.labels))]
    if masked:
        pad = getattr(subject.tokenizer, "pad_token_id", None)
        yield error(
            "stop-token-masked",
            f"the end token is in {len(masked)} of {len(rows)} rows and its label is {IGNORED} in all"
            + (f", as padding's is: `pad_token_id` is `eos_token_id` ({pad})" if pad in stops else ""),
            "the model is never taught to stop and will write until the limit",
            "give the tokenizer a pad token of its own, or mask by position and not by token",
        )
    elif len({len(r.labels) for r in rows}) > 1:
        # Text cut into equal blocks has no ends to learn; rows of unequal lengths do.
        yield warning(
            "stop-token-missing", f"none of {len(rows)} rows holds the end token ({', '.join(map(str, sorted(stops)))})",
            "the model is never taught to stop and will write until the limit", "append the tokenizer's `eos_token` to each row",
        )  # fmt: skip


def _ends(ids: tuple[int, ...], labels: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The last token with its label: an end token inside the prompt is masked rightly."""
    if len(ids) == len(labels) and ids:
        yield ids[-1], labels[-1]


CHECK = Check(
    slug="stop-token",
    title="The end token is masked out (pad = eos) or missing.",
    codes=("stop-token-masked", "stop-token-missing"),
    look=_look,
)
