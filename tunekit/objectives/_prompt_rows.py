"""Rows of a labelled data set as prompts, with the tokens of the label words and where the model says them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.data.encode import Encoded, own_limit
from tunekit.data.labels import IGNORE, encode_labels
from tunekit.data.quiet import no_bars
from tunekit.data.tally import Tally
from tunekit.errors import raise_all
from tunekit.finding import Finding, error
from tunekit.objectives._label_words import (
    Place,
    Verbalizer,
    covered,
    label_faults,
    place_of,
    soft_tokens,
    tokenizer_faults,
    word_findings,
    word_tokens,
)
from tunekit.objectives._prompt_text import Example, Examples, Tokens, Values, Writer, filling_of, value_of
from tunekit.objectives._template import Piece, fields_of, num_soft, pieces_of

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from tunekit.objectives.prompt_learning import PromptLearning
    from tunekit.workload import Side

NOWHERE = -1
"""Fills up positions and words to a common length."""


@dataclass(frozen=True, slots=True)
class Words:
    """The label words of one task, in the order of its classes."""

    names: tuple[str, ...]
    """The classes."""
    words: tuple[str, ...]
    classes: tuple[int, ...]
    """The class of each word."""
    tokens: tuple[Mapping[str, tuple[int, ...]], ...]
    """For each template, each word's tokens there."""
    read: tuple[str, ...]
    """Words that a sequence of their own is read for, in every template: those of several tokens where a decoder says them
    one after the other. All that are one token are said before any of these; where there is none, one sequence serves all."""

    @property
    def longest(self) -> int:
        """Tokens of the longest word."""
        return max(len(t) for table in self.tokens for t in table.values())

    def sequences(self) -> list[int]:
        """The sequence of a template in which each word is said."""
        return [self.read.index(w) if w in self.read else 0 for w in self.words]

    def table(self) -> list[list[list[int]]]:
        """(templates, words, tokens), filled up."""
        return [[_filled(table[w], self.longest) for w in self.words] for table in self.tokens]


def _filled(values: Sequence[int], length: int) -> list[int]:
    return [*values, *[NOWHERE] * (length - len(values))]


def read_words(verbalizer: Verbalizer, names: Sequence[str], tokenizer: Any, places: Sequence[Place]) -> Words:
    """The words of the classes `names` (of the verbalizer's own where the data names none)."""
    names = tuple(names) or tuple(verbalizer)
    pairs = [(word, i) for i, name in enumerate(names) for word in verbalizer[name]]
    words = tuple(w for w, _ in pairs)
    tables = tuple({w: word_tokens(tokenizer, place, w) for w in words} for place in places)
    split = [w for w in dict.fromkeys(words) if places[0].kind != "mask" and max(len(t[w]) for t in tables) > 1]
    return Words(names, words, tuple(i for _, i in pairs), tables, tuple(split) or words[:1])


def prompt_rows(
    objective: PromptLearning,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    side: Side,
    examples: datasets.Dataset | None,
    columns: Mapping[str, str],
    max_length: int | None = None,
    label_names: Sequence[str] = (),
    problem_type: str | None = None,
    template: str | None = None,
) -> Encoded:
    """Rows as the loss takes them. A row is one sequence a template; where a decoder's label words have several tokens, one
    a template and such word.

    Columns: `input_ids` (sequences, tokens), `positions` (sequences, tokens of a word) where the logits of the words are,
    `words` (templates, words, tokens), `said_in` (words) the sequence of a template, `classes` (words), for seq2seq `answers`
    (what the decoder writes), `prior`, `labels`.

    Raises:
        InvalidError: every fault of templates, words, labels and tokenizer together.
    """
    parsed = [pieces_of(t) for t in objective.templates]
    limit = max_length if max_length is not None else own_limit(tokenizer)
    faults = [*_problem_faults(problem_type, template), *tokenizer_faults(tokenizer, parsed, side)]
    faults += [*label_faults(objective.verbalizer, label_names), *_field_faults(rows, columns, parsed)]
    raise_all(faults)
    places = [place_of(pieces, side, tokenizer) for pieces in parsed]
    words = read_words(objective.verbalizer, label_names, tokenizer, places)
    said = word_findings(objective.verbalizer, words.tokens, tokenizer.unk_token_id)
    raise_all(said)
    shown = _examples(objective, examples, columns, words, parsed)
    softs = soft_tokens(tokenizer, sum(map(num_soft, parsed)))
    writers, at = [], 0
    for place in places:
        count = num_soft(place.pieces)
        writers.append(Writer(tokenizer, place, limit, shown, softs[at : at + count]))
        at += count
    tally = Tally()
    maker = _Maker(objective, words, tuple(writers), dict(columns), tuple(dict.fromkeys(f for p in parsed for f in fields_of(p))), tally)  # fmt: skip
    made = _mapped(rows, maker, problem_type)
    return Encoded(dataset=made, findings=(*said, *tally.findings(len(rows), limit)))


def _mapped(rows: datasets.Dataset, maker: _Maker, problem_type: str | None) -> datasets.Dataset:
    label = maker.columns.get("label")
    used = list(dict.fromkeys([maker.columns.get(f, f) for f in maker.fields] + ([label] if label else [])))
    names = maker.words.names

    def encode(batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        made = maker.batch(batch, numbers)
        return {**made, "labels": encode_labels(batch[label], names, problem_type)} if label else made

    with no_bars():
        return rows.with_format(None).select_columns(used).map(
            encode, batched=True, batch_size=256, with_indices=True, remove_columns=used, load_from_cache_file=False,
            keep_in_memory=True, new_fingerprint=uuid.uuid4().hex[:16],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the columns of some rows."""

    objective: PromptLearning
    words: Words
    writers: tuple[Writer, ...]
    columns: dict[str, str]
    fields: tuple[str, ...]
    tally: Tally

    def batch(self, batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        values = [
            {f: value_of(batch[self.columns.get(f, f)][i], row, f) for f in self.fields}
            for i, row in enumerate(numbers)
        ]
        rows: list[dict[str, list[Any]]] = [{"input_ids": [], "positions": [], "answers": []} for _ in numbers]
        cut: set[int] = set()
        for writer, table in zip(self.writers, self.words.tokens, strict=True):
            self._through(writer, table, numbers, values, rows, cut)
        for row in sorted(cut):
            self.tally.add("rows-truncated", row)
        made = {name: [row[name] for row in rows] for name in ("input_ids", "positions", "answers")}
        same: dict[str, list[Any]] = {
            "words": self.words.table(),
            "said_in": self.words.sequences(),
            "classes": list(self.words.classes),
        }
        made |= {name: [value] * len(rows) for name, value in same.items()}
        width = max((len(answer) for row in rows for answer in row["answers"]), default=0)
        made["answers"] = [[[*a, *[IGNORE] * (width - len(a))] for a in row["answers"]] for row in rows]
        if not width:
            del made["answers"]
        if self.objective.prior:
            made["prior"] = [_prior(self.objective.prior, self.words.names)] * len(rows)
        return made

    def _through(
        self, writer: Writer, table: Mapping[str, tuple[int, ...]], numbers: list[int], values: list[Values], rows: Any, cut: set[int]
    ) -> None:  # fmt: skip
        """Every row through one template."""
        place, masks = writer.place, max(map(len, table.values()))
        for word in self.words.read:
            texts = writer.texts(numbers, values, filling_of(place, masks, word))
            for text, row, number in zip(texts, rows, numbers, strict=True):
                ids, positions, answer = _sequence(text, place, table[word])
                row["input_ids"].append(ids)
                row["positions"].append(_filled(positions, self.words.longest))
                if answer is not None:
                    row["answers"].append(answer)
                if text.was_cut:
                    cut.add(number)


def _sequence(text: Tokens, place: Place, tokens: tuple[int, ...]) -> tuple[list[int], list[int], Any]:
    """What the model reads, where the logits of the word's tokens are, and what a decoder writes."""
    if place.kind == "answer":
        return text.ids, [len(place.prefix) + j for j in range(len(tokens))], [*place.prefix, *tokens]
    inside = covered(text.offsets, text.written.mask)
    if place.kind == "mask":
        return text.ids, inside, None
    first = inside[0]
    # A text without any token before the word: something must be read first.
    before = text.ids[:first] or [text.ids[-1]]
    return [*before, *tokens[:-1]], [len(before) - 1 + j for j in range(len(tokens))], None


def _prior(prior: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[list[float]]:
    """(templates, classes)."""
    return [list(column) for column in zip(*(prior[name] for name in names), strict=True)]


def _examples(
    objective: PromptLearning, examples: Any, columns: Mapping[str, str], words: Words, parsed: Sequence[tuple[Piece, ...]]
) -> Examples | None:  # fmt: skip
    """The labelled rows that are shown before others."""
    if not objective.demonstrations:
        return None
    label = columns.get("label", "label")
    if examples is None or label not in examples.column_names:
        raise_all([error("prompt-demonstrations", f"`demonstrations: {objective.demonstrations}` without labelled rows", "they are taken from the training rows", "pass the training rows as `examples`, or set `demonstrations: 0`")])  # fmt: skip
    fields = dict.fromkeys(f for p in parsed for f in fields_of(p))
    texts = {f: examples[columns.get(f, f)] for f in fields}
    labels = encode_labels(list(examples[label]), words.names, "single_label_classification", label)
    found: dict[int, list[Example]] = {i: [] for i in range(len(words.names))}
    for i, y in enumerate(labels):
        found[y].append(Example({f: value_of(texts[f][i], i, f) for f in fields}, y))
    empty = [words.names[y] for y, rows in found.items() if not rows]
    raise_all(
        error("prompt-demonstrations", f"class {name!r} without a labelled row", "each class is shown", "add a row of it, or set `demonstrations: 0`")
        for name in empty
    )  # fmt: skip
    first = [words.words[words.classes.index(y)] for y in range(len(words.names))]
    return Examples(found, first, objective.demonstrations, objective.seed, objective.separator)


def _problem_faults(problem_type: str | None, template: str | None) -> list[Finding]:
    faults = []
    if problem_type not in (None, "single_label_classification"):
        faults.append(error("prompt-problem-type", f"prompt learning of {problem_type}", "a label word stands for one class of a row", "use `objective: supervised`"))  # fmt: skip
    if template is not None:
        faults.append(error("template-task", "`data.template`", "prompt learning has templates of its own", "move it to `objective.templates`, with `{mask}` where the label word stands"))  # fmt: skip
    return faults


def _field_faults(
    rows: datasets.Dataset, columns: Mapping[str, str], parsed: Sequence[tuple[Piece, ...]]
) -> list[Finding]:
    faults, there = [], ", ".join(f"`{c}`" for c in rows.column_names)
    for name in dict.fromkeys(f for p in parsed for f in fields_of(p)):
        column = columns.get(name, name)
        if column not in rows.column_names:
            faults.append(error("prompt-field-unknown", f"a template names `{name}`", f"the data has {there}", "name a column of the data, or map it with `data.columns`"))  # fmt: skip
        elif column == columns.get("label"):
            faults.append(error("prompt-field-label", f"a template names `{name}`", "that is the label, which would be read instead of learnt", "write `{mask}` where the label word stands"))  # fmt: skip
    return faults
