"""Tally: what happened to rows on the way through an encoder, as findings at the end."""

from __future__ import annotations

from collections import defaultdict

from tunekit.finding import Finding, note, warning


class Tally:
    """Counts rows by event, with the first of each; filled by encoders, read once by `encode`."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = defaultdict(list)

    def add(self, event: str, row: int) -> None:
        """One row met one event."""
        self.rows[event].append(row)

    def findings(self, total: int, limit: int | None) -> tuple[Finding, ...]:
        """One finding an event; what concerns hardly a row in a hundred is a note."""
        made = []
        for event, rows in self.rows.items():
            seen, why, fix = _WORDS[event]
            count = f"{len(rows)} of {total} rows (first: {rows[0]})"
            say = note if event == "rows-truncated" and len(rows) * 100 < total else warning
            made.append(say(event, f"{count} {seen.format(limit=limit)}", why, fix))
        return tuple(made)


_WORDS = {
    "rows-truncated": (
        "are longer than {limit} tokens", "their ends were cut off", "set a larger `max_length`, or shorten the rows",
    ),
    "rows-unsupervised": (
        "have no token that the loss would see", "they were left out", "set a larger `max_length`, or remove these rows",
    ),
    "rows-boundary": (
        "have a token that spans the end of the prompt and the start of the answer",
        "when it generates, the model sees the prompt cut differently",
        "move the space from the end of the prompt to the start of the answer",
    ),
    "rows-no-stop": (
        "have an answer that ends without a special token", "the model would not learn to stop",
        "let the chat template close an assistant's turn, for example with the end-of-sequence token",
    ),
    "answers-moved": (
        "have an `answer_start` that does not point at the answer", "its only occurrence in the context was taken",
        "correct the offsets",
    ),
    "words-lost": (
        "have words that the tokenizer drops", "their tags were left out", "remove words without visible characters",
    ),
}  # fmt: skip
"""Event (and code) to what was seen, why it matters, the way out."""
