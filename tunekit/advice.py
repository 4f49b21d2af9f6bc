"""Advice: ranked and rejected plans with estimates and findings; prints and serialises itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunekit.errors import InvalidError, MissingError
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.fields import to_plain
from tunekit.finding import Finding, error, nearest
from tunekit.plan import Plan
from tunekit.workload import Workload

SCHEMA = 1
"""Raised when what `Advice.to_dict` writes could be misread by an older reader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One plan that was considered."""

    plan: Plan
    memory: MemoryEstimate | None
    """None where it was refused before it was simulated."""
    duration: TimeEstimate | None
    findings: tuple[Finding, ...] = ()
    """Everything that rules and checks said of it."""
    score: float = 0.0
    """Points against the usual choice, after the goal's weighing; higher is better."""
    tie: int = 0
    """Entries with the same number are told apart by no evidence, only by memory, time and storage."""

    @property
    def slug(self) -> str:
        """What it is compared as: the objective's name where it is not the labels alone, else the method's."""
        objective = self.plan.objective
        return self.plan.method.slug if objective is None or objective.slug == "supervised" else objective.slug

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each finding that moved it, the weightiest first."""
        return tuple(f.seen for f in self.moving)

    @property
    def moving(self) -> tuple[Finding, ...]:
        """The findings that rejected it or moved it in the ranking, the weightiest first."""
        moved = [f for f in self.findings if f.severity in ("error", "favours", "disfavours")]
        return tuple(sorted(moved, key=lambda f: (f.severity != "error", -abs(f.points), f.code)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "plan": self.plan.to_dict(),
            "memory": to_plain(self.memory),
            "duration": to_plain(self.duration),
            "findings": [f.to_dict() for f in self.findings],
            "score": self.score,
            "tie": self.tie,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The answer to a Workload. Print it, look at its parts, or train what it ranks first.

    Example:
        >>> from transformers import GPT2Config
        >>> import tunekit
        >>> advice = tunekit.advise(GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=500), num_examples=2000,
        ...                         mean_tokens=32, hardware="24GB", methods=["lora", "full"])
        >>> advice.best.plan.method.slug
        'lora'
        >>> print(advice.why("lora", "full"))                                  # doctest: +ELLIPSIS
        LoRA ...
    """

    workload: Workload
    ranked: tuple[Entry, ...]
    """Plans that were simulated to fit, best first."""
    rejected: tuple[Entry, ...]
    """Plans that cannot work or do not fit, each with a finding of severity error that says why."""
    findings: tuple[Finding, ...] = ()
    """What concerns the question as a whole: the data, the hardware, what was assumed."""
    version: str = ""
    """Version of tunekit, of its rules and of its catalogue."""
    make_trainer: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    """Handed in by `tunekit.advise`: how a plan becomes a Trainer."""

    @property
    def best(self) -> Entry | None:
        """The first entry, or None when nothing fits."""
        return self.ranked[0] if self.ranked else None

    def entry(self, slug: str) -> Entry:
        """The best entry of a method, or of an objective such as `distillation`, ranked or rejected.

        Raises:
            InvalidError: `method-not-considered`, naming those that were.
        """
        for entry in (*self.ranked, *self.rejected):
            if entry.slug == slug:
                return entry
        known = sorted({e.slug for e in (*self.ranked, *self.rejected)})
        raise InvalidError(
            error("method-not-considered", f"method {slug!r}", "this advice did not look at it", nearest(slug, known))
        )

    def why(self, first: str, second: str) -> str:
        """Two methods side by side: how they are placed, what is predicted, and what speaks for and against each.

        Args:
            first: A method's slug.
            second: Another one's.

        Raises:
            InvalidError: `method-not-considered`.
        """
        from tunekit.advice_text import comparison

        return comparison(self, self.entry(first), self.entry(second))

    def trainer(self, method: str | None = None, **keywords: Any) -> Any:
        """A configured `transformers.Trainer` for the best plan, or for the best plan of one method.

        Args:
            method: A slug; None takes the first entry.
            **keywords: What `tunekit.trainer` takes besides the plan: `train_dataset`, `eval_dataset`, `model`, ...

        Raises:
            MissingError: `nothing-fits` where there is no plan to train.
        """
        entry = self.best if method is None else self.entry(method)
        if entry is None or entry not in self.ranked:
            reason = "; ".join(entry.reasons) if entry else "no plan fits this hardware"
            raise MissingError(
                error(
                    "nothing-fits",
                    "a Trainer for advice without a fitting plan",
                    reason,
                    "look at `advice.rejected` and `advice.findings`",
                )
            )
        assert self.make_trainer is not None, "an Advice from `tunekit.advise` knows how to make a Trainer"
        return self.make_trainer(entry.plan, **keywords)

    def to_dict(self) -> dict[str, Any]:
        """`kind`, `schema` and everything as plain values; the same question gives the same dict."""
        return {
            "kind": "tunekit-advice",
            "schema": SCHEMA,
            "version": self.version,
            "digest": self.workload.digest(),
            "workload": to_plain(self.workload),
            "ranked": [e.to_dict() for e in self.ranked],
            "rejected": [e.to_dict() for e in self.rejected],
            "findings": [f.to_dict() for f in self.findings],
        }

    def to_json(self) -> str:
        """The advice as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, sort_keys=False) + "\n"

    def __str__(self) -> str:
        from tunekit.advice_text import text

        return text(self)

    def _repr_html_(self) -> str:
        from tunekit.advice_html import html

        return html(self)
