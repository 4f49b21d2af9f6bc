"""Preflight: what a training run is about to get wrong, seen before its first step. One concept a file.

A file holds one `Check`; `inspect` runs all of them on a `Subject`, which is read off a Trainer or a callback's arguments.
"""

from __future__ import annotations

from tunekit.preflight._check import Check, inspect
from tunekit.preflight._digest import digest
from tunekit.preflight._read import collator_of, of_events, of_trainer, untouched_random_numbers
from tunekit.preflight._subject import Row, Subject

__all__ = [
    "Check",
    "Row",
    "Subject",
    "collator_of",
    "digest",
    "inspect",
    "of_events",
    "of_trainer",
    "untouched_random_numbers",
]
