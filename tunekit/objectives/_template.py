"""Templates: a text with fields, a blank and perhaps soft tokens, read once and written out for each row."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunekit.finding import Finding, error

Span = tuple[int, int]
"""From the first character to the one after the last."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a template."""

    kind: Literal["text", "field", "mask", "soft"]
    text: str = ""
    """The words themselves, or the field's name."""
    count: int = 1
    """Soft tokens."""


@dataclass(frozen=True, slots=True)
class Written:
    """A template written out for one row."""

    text: str
    mask: Span
    fields: tuple[tuple[str, Span], ...] = ()
    """Where each field's value stands; a demonstration's come before the row's own."""
    soft: tuple[Span, ...] = ()
    """Where each soft token's stand-in is."""


def pieces_of(template: str) -> tuple[Piece, ...]:
    """The parts of a template.

    Raises:
        ValueError: unbalanced braces, or a field with a format of its own.

    Example:
        >>> [p.kind for p in pieces_of("{text} It was {mask}.")]
        ['field', 'text', 'mask', 'text']
    """
    found: list[Piece] = []
    for words, name, form, conversion in string.Formatter().parse(template):
        if words:
            found.append(Piece("text", words))
        if name is None:
            continue
        if name == "soft" and (not form or form.isdigit()) and not conversion:
            found.append(Piece("soft", count=int(form or 1)))
        elif form or conversion:
            raise ValueError(f"field `{name}` has a format of its own")
        else:
            found.append(Piece("mask") if name == "mask" else Piece("field", name))
    return tuple(found)


def template_faults(template: str) -> list[Finding]:
    """What is wrong with a template by itself."""
    seen, example = f"template {template!r}", 'write it as in `"{text} It was {mask}."`'
    try:
        pieces = pieces_of(template)
    except ValueError as e:
        return [error("prompt-template-format", seen, str(e), f"{example}; literal braces twice")]
    masks, faults = sum(p.kind == "mask" for p in pieces), []
    if masks != 1:
        said = (
            "it has no `{mask}` for the label word" if not masks else f"it has {masks} masks, and a label has one place"
        )
        faults.append(error("prompt-mask-missing" if not masks else "prompt-mask-several", seen, said, example))
    if not any(p.kind == "field" for p in pieces):
        faults.append(error("prompt-field-missing", seen, "it has no field, so every row would read the same", example))
    if any(p.kind == "field" and not p.text.isidentifier() for p in pieces):
        faults.append(error("prompt-template-format", seen, "a field is the name of a column", example))
    if any(p.kind == "soft" and p.count < 1 for p in pieces):
        faults.append(
            error("prompt-template-format", seen, "it asks for no soft token", "write `{soft}` or `{soft:3}`")
        )
    return faults


def fields_of(pieces: Sequence[Piece]) -> tuple[str, ...]:
    """The fields in their order, each once."""
    return tuple(dict.fromkeys(p.text for p in pieces if p.kind == "field"))


def num_soft(pieces: Sequence[Piece]) -> int:
    """Soft tokens of a template."""
    return sum(p.count for p in pieces if p.kind == "soft")


def ends_with_mask(pieces: Sequence[Piece]) -> bool:
    """Whether nothing but white space stands after the blank."""
    last = [p.kind for p in pieces].index("mask") + 1
    return all(p.kind == "text" and not p.text.strip() for p in pieces[last:])


def write(pieces: Sequence[Piece], values: Mapping[str, str], mask: str, stand_in: str = "") -> Written:
    """The template with its fields, the blank and the soft tokens written out.

    Args:
        pieces: The template's.
        values: One text a field.
        mask: What stands in the blank: the tokenizer's mask, or a label word.
        stand_in: What stands for each soft token.

    Example:
        >>> write(pieces_of("{text} It was {mask}."), {"text": "Fine."}, "good").text
        'Fine. It was good.'
    """
    text, blank, fields, soft = "", (0, 0), [], []
    for piece in pieces:
        start = len(text)
        if piece.kind == "soft":
            for _ in range(piece.count):
                soft.append((len(text), len(text) + len(stand_in)))
                text += stand_in
            continue
        text += {"text": piece.text, "mask": mask}.get(piece.kind, values.get(piece.text, ""))
        if piece.kind == "mask":
            blank = (start, len(text))
        elif piece.kind == "field":
            fields.append((piece.text, (start, len(text))))
    return Written(text, blank, tuple(fields), tuple(soft))


def joined(parts: Sequence[Written], separator: str) -> Written:
    """Demonstrations and a row as one text; the blank is the last one's."""
    text, fields, soft, blank = "", [], [], (0, 0)
    for i, part in enumerate(parts):
        text += separator if i else ""
        at = len(text)
        fields += [(f"{i}:{name}", (a + at, b + at)) for name, (a, b) in part.fields]
        soft += [(a + at, b + at) for a, b in part.soft]
        blank = (part.mask[0] + at, part.mask[1] + at)
        text += part.text
    return Written(text, blank, tuple(fields), tuple(soft))
