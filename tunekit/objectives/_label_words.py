"""Label words as the tokens that a model writes in a template's blank, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.finding import Finding, error, note, warning
from tunekit.objectives._template import Piece, Span, ends_with_mask, fields_of, num_soft, write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunekit.workload import Side

Verbalizer = Mapping[str, tuple[str, ...]]

SENTINEL = "<extra_id_0>"
"""T5's name for the first thing that is missing from a text."""
_SPARE = re.compile(
    r"\[unused\d+\]|<unused\d+>|<extra_id_[1-9]\d*>|madeupword\d+|<\|reserved_special_token_\d+\|>|<reserved_?\d+>"
)
"""What vocabularies call tokens that no text uses; `<extra_id_0>` is the blank."""
_FILLER = "."
"""Stands in fields where only the words around them count: never part of a word."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a template's blank is put to a model of one side."""

    pieces: tuple[Piece, ...]
    kind: str
    """`mask`: the blank is in what an encoder reads; `next`: it is what a decoder reads next; `answer`: a seq2seq model's
    decoder writes it after `prefix`."""
    prefix: tuple[int, ...] = ()
    """What the decoder of a seq2seq model has written before the word."""
    blank: str = ""
    """What is written into the text for the blank (one of them)."""


def place_of(pieces: tuple[Piece, ...], side: Side, tokenizer: PreTrainedTokenizerBase) -> Place:
    """Where the label word stands."""
    if side == "encoder":
        return Place(pieces, "mask", blank=str(tokenizer.mask_token))
    if side == "decoder":
        return Place(pieces, "next")
    blank = "" if ends_with_mask(pieces) else SENTINEL
    word = "."
    prefix, _ = _apart(tokenizer, f"{blank} {word}" if blank else word, len(blank) + bool(blank), target=True)
    return Place(pieces, "answer", prefix=prefix, blank=blank)


def word_tokens(tokenizer: PreTrainedTokenizerBase, place: Place, word: str) -> tuple[int, ...]:
    """The tokens that a word has where the blank is."""
    if place.kind == "answer":
        text, start = (f"{place.blank} {word}", len(place.blank) + 1) if place.blank else (word, 0)
        return _apart(tokenizer, text, start, start + len(word), target=True)[1]
    written = write(place.pieces, dict.fromkeys(fields_of(place.pieces), _FILLER), word, _FILLER)
    return _apart(tokenizer, written.text, *written.mask)[1]


def _apart(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int | None = None, target: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens before a stretch of a text, and those in it."""
    settings: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
    made = tokenizer(text_target=text, **settings) if target else tokenizer(text, **settings)
    inside = covered(made["offset_mapping"], (start, len(text) if end is None else end))
    if not inside:
        return tuple(made["input_ids"]), ()
    return tuple(made["input_ids"][: inside[0]]), tuple(made["input_ids"][i] for i in inside)


def covered(offsets: Sequence[Span], span: Span) -> list[int]:
    """The tokens that stand in a stretch of characters.

    Example:
        >>> covered([(0, 0), (0, 4), (4, 8), (0, 0)], (5, 8))
        [2]
    """
    return [i for i, (a, b) in enumerate(offsets) if a < b and a < span[1] and b > span[0]]


def soft_tokens(tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[int, ...]:
    """So many tokens of the vocabulary that no text uses; fewer where it has fewer."""
    if not count:
        return ()
    spare = sorted(i for token, i in tokenizer.get_vocab().items() if _SPARE.fullmatch(token))
    return tuple(spare[:count])


def stand_in(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that keeps a soft token's place while a text is tokenised."""
    return str(tokenizer.mask_token or tokenizer.unk_token or tokenizer.eos_token)


def tokenizer_faults(
    tokenizer: PreTrainedTokenizerBase, templates: Sequence[tuple[Piece, ...]], side: Side
) -> list[Finding]:
    """What the tokenizer lacks for these templates."""
    faults, kind = [], type(tokenizer).__name__
    if not tokenizer.is_fast:
        faults.append(error("tokenizer-slow", f"tokenizer `{kind}`", "it does not tell where in the text a token stands", "load the fast tokenizer of the model"))  # fmt: skip
    if side == "encoder" and tokenizer.mask_token is None:
        faults.append(error("prompt-mask-token", f"tokenizer `{kind}`", "it has no mask token, so the blank cannot be shown", "use the tokenizer of a masked language model, or set `tokenizer.mask_token`"))  # fmt: skip
    wanted = sum(num_soft(pieces) for pieces in templates)
    if wanted > (have := len(soft_tokens(tokenizer, wanted))):
        faults.append(error("prompt-soft-vocabulary", f"{wanted} soft tokens with {have} spare tokens in the vocabulary", "soft tokens take the place of tokens that no text uses", "ask for fewer, write words in their place, or use `method: prompt-tuning`"))  # fmt: skip
    for pieces in templates:
        faults += side_faults(pieces, side, SENTINEL in tokenizer.get_vocab())
    return faults


def side_faults(pieces: tuple[Piece, ...], side: Side, has_sentinel: bool = True) -> list[Finding]:
    """A blank where this side of a transformer cannot fill it in."""
    if side == "encoder" or ends_with_mask(pieces) or (side == "seq2seq" and has_sentinel):
        return []
    text = "".join(p.text if p.kind == "text" else f"{{{p.text or p.kind}}}" for p in pieces)
    why = "a decoder writes the word after all it has read" if side == "decoder" else f"the tokenizer has no `{SENTINEL}` to leave a gap with"  # fmt: skip
    return [
        error("prompt-mask-not-last", f"template {text!r} with a {side} model", why, "end the template with `{mask}`")
    ]


def verbalizer_faults(verbalizer: Verbalizer) -> list[Finding]:
    """What is wrong with label words by themselves."""
    fix = "give every class one word or more: `verbalizer: {negative: [terrible], positive: [great]}`"
    if len(verbalizer) < 2:
        seen = (
            "an empty `verbalizer`" if not verbalizer else f"`verbalizer` with the one class {next(iter(verbalizer))!r}"
        )
        return [error("prompt-verbalizer-empty", seen, "there is nothing to tell apart", fix)]
    empty = [name for name, words in verbalizer.items() if not words or not all(w.strip() for w in words)]
    return [error("prompt-verbalizer-empty", f"class {name!r} without a label word", "the model could never choose it", fix) for name in empty]  # fmt: skip


def label_faults(verbalizer: Verbalizer, label_names: Sequence[str]) -> list[Finding]:
    """Classes of the data without words, and words for classes that the data does not have."""
    if not label_names or {*verbalizer} == {*label_names}:
        return []
    listed = ", ".join(map(repr, label_names[:8])) + (", ..." if len(label_names) > 8 else "")
    lacking = [n for n in label_names if n not in verbalizer]
    extra = [n for n in verbalizer if n not in label_names]
    said = [f"no words for {', '.join(map(repr, lacking[:5]))}"] if lacking else []
    said += [f"words for {', '.join(map(repr, extra[:5]))}, which no row has"] if extra else []
    return [error("prompt-labels", f"`verbalizer` with {'; '.join(said)}", f"the data's classes are {listed}", "name every class of the data once, or set `data.label_names`")]  # fmt: skip


def word_findings(
    verbalizer: Verbalizer, tokens: Sequence[Mapping[str, tuple[int, ...]]], unknown: int | None
) -> list[Finding]:
    """Words that are unknown, split, or equal once they are tokens.

    Args:
        verbalizer: The words.
        tokens: For each template, each word's tokens there.
        unknown: The id of the token for what the vocabulary does not know.
    """
    found = []
    for word in dict.fromkeys(w for words in verbalizer.values() for w in words):
        made = [table[word] for table in tokens]
        if any(not t or unknown in t for t in made):
            found.append(error("prompt-word-unknown", f"label word {word!r}", "the vocabulary does not know it", "choose another word"))  # fmt: skip
        elif max(map(len, made)) > 1:
            found.append(note("prompt-word-split", f"label word {word!r} is {max(map(len, made))} tokens", "it is scored by the mean over them", "a word that is one token is compared more evenly"))  # fmt: skip
    return [*found, *(f for table in tokens[:1] for f in _equal(verbalizer, table))]


def _equal(verbalizer: Verbalizer, table: Mapping[str, tuple[int, ...]]) -> list[Finding]:
    seen: dict[tuple[int, ...], tuple[str, str]] = {}
    found = []
    for name, words in verbalizer.items():
        for word in words:
            other, before = seen.setdefault(table[word], (name, word))
            if other != name:
                found.append(error("prompt-words-equal", f"label words {before!r} of {other!r} and {word!r} of {name!r}", "they are the same tokens, so the classes cannot be told apart", "choose another word for one of them"))  # fmt: skip
            elif before != word or words.count(word) > 1:
                found.append(warning("prompt-words-equal", f"label words {before!r} and {word!r} of {name!r}", "they are the same tokens and count twice", "leave one out"))  # fmt: skip
    return found
