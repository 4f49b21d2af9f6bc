"""What other people call our columns. The first name of each row is ours; earlier names win over later ones."""

from __future__ import annotations

from collections.abc import Mapping

PAIRS: tuple[tuple[str, str], ...] = (
    ("text", "text_pair"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "title"),
    ("claim", "evidence"),
)
"""Two sentences of one row."""

TEXT = (
    "text", "sentence", "review", "tweet", "utterance", "comment", "content", "body", "query", "question", "message",
    "review_body", "review_text", "document", "headline", "description", "input", "inputs",
)  # fmt: skip
"""The one text of a row."""

LABEL = (
    "label", "labels", "class", "category", "intent", "sentiment", "emotion", "topic", "target", "y", "score", "rating",
    "stars", "relatedness", "similarity", "coarse_label", "fine_label", "label_name", "label_text", "answer",
)  # fmt: skip

SOURCE_TARGET: tuple[tuple[str, str], ...] = (
    ("source", "target"),
    ("src", "tgt"),
    ("source_text", "target_text"),
    ("input_text", "target_text"),
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("article", "abstract"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("inputs", "targets"),
    ("input", "target"),
)
"""Something to read and something to write."""

PROMPT_COMPLETION: tuple[tuple[str, str], ...] = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("query", "response"),
    ("question", "response"),
    ("question", "answer"),
    ("problem", "solution"),
    ("input", "output"),
    ("inputs", "outputs"),
)
"""Something asked and its answer. With `instruction`, a column `input` (or `context`) belongs to what is asked."""

SINGLES: Mapping[str, tuple[str, ...]] = {
    "text": TEXT,
    "label": LABEL,
    "tokens": ("tokens", "words", "token"),
    "tags": ("tags", "ner_tags", "ner", "pos_tags", "chunk_tags", "bio_tags", "token_labels", "labels", "label"),
    "context": ("context", "passage", "paragraph", "document"),
    "question": ("question", "query"),
    "answers": ("answers", "answer"),
    "choices": ("choices", "options", "endings", "alternatives", "candidates"),
    "messages": ("messages", "conversations", "conversation", "dialog"),
}
"""Our column name to what it may be called."""

CHOICE_TEXT = ("text", "question", "context", "prompt", "premise", "stem", "sent1", "ctx", "query", "sentence")
CHOICE_LABEL = (
    "label",
    "labels",
    "answer",
    "answerKey",
    "answer_key",
    "correct",
    "gold",
    "target",
    "gold_label",
    "answer_idx",
)
"""For multiple choice, where the words mean something else."""

MORE_INPUT = ("input", "context")
"""Columns that complete an `instruction`."""
