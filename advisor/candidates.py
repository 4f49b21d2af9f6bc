"""What is compared: methods by themselves, methods under a well-known name, and objectives that the facts bear."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.advisor.variants import VARIANTS
from tunekit.advisor.words import nameable, templates, verbalizer
from tunekit.contracts import Method, Objective
from tunekit.discovery import everything, find, slugs
from tunekit.errors import TunekitError, raise_all
from tunekit.finding import Finding, error, nearest
from tunekit.workload import ModelFacts, Workload

PROMPTED_ROWS = 1000
"""Up to here the published comparisons of templates with a plain head were made."""
_LARGE = 10**9
_SEEN_ROWS = 4000
"""Rows that learning through a template sees in all at least: 250 steps of 16, as PET takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What a plan is made of besides its recipe."""

    method: Method
    objective: Objective | None = None
    """None: the labels alone."""
    quantization: str | None = None
    num_train_epochs: float | None = None
    """In place of the recipe's."""


def names() -> tuple[str, ...]:
    """Everything that `methods` may name: methods, well-known settings of them, objectives."""
    return (*slugs("method"), *(v for v, of in VARIANTS.items() if of.method in slugs("method")), *_objectives())


def candidates(workload: Workload, asked: Iterable[str] | None = None) -> tuple[Candidate, ...]:
    """The candidates in a fixed order, or in the order asked for.

    Args:
        workload: The question.
        asked: Names to restrict them to; None: every method, and the objectives that the facts bear.

    Raises:
        InvalidError: `method-unknown`, `method-needs-settings`, for every name at once.
    """
    if asked is None:
        # What needs settings that nobody can guess (adapters to fuse, a PEFT configuration) proposes nothing by itself.
        plain = [Candidate(method=m) for cls in everything("method").values() for m in cls.candidates(workload)]
        return (*plain, *(c for slug in _objectives() for c in _with_objective(workload, slug)))
    found: list[Candidate] = []
    faults: list[Finding] = []
    for name in dict.fromkeys([asked] if isinstance(asked, str) else asked):
        try:
            found += _named(workload, name)
        except TunekitError as e:
            faults += e.findings
    raise_all(faults)
    return tuple(c for i, c in enumerate(found) if c not in found[:i])


def unknown(name: str) -> list[Finding]:
    """What is wrong with a name that `methods` holds, with the nearest known one."""
    known = names()
    if name in known:
        return []
    return [error("method-unknown", f"method {name!r}", "no such method", nearest(name, known))]


def _named(workload: Workload, name: str) -> list[Candidate]:
    """What one name stands for."""
    raise_all(unknown(name))
    if name in VARIANTS:
        variant = VARIANTS[name]
        return [Candidate(method=variant.make(), quantization=variant.quantization)]
    if name in _objectives():
        made = _with_objective(workload, name, asked=True)
        raise_all([] if made else [_bare_objective(name)])
        return made
    cls = find("method", name)
    raise_all(_needs_settings(cls, cls.candidates(workload)))
    return [Candidate(method=m) for m in cls.candidates(workload)]


def _needs_settings(cls: type[Method], made: tuple[Method, ...]) -> list[Finding]:
    """Why a method that is asked for by its name alone cannot be proposed."""
    kind: Any = cls
    needed = [
        f.name for f in dataclasses.fields(kind) if f.init and f.default is f.default_factory is dataclasses.MISSING
    ]
    if made or not needed:
        return []
    listed = " and ".join(f"`{n}`" for n in needed)
    seen, why = f"method {cls.slug!r} without settings", f"nobody can guess its {listed}"
    fix = f"write a plan with `method: {{kind: {cls.slug}, {needed[0]}: ...}}` and estimate that"
    return [error("method-needs-settings", seen, why, fix)]


# ---------------------------------------------------------------------------------------------- objectives
def _objectives() -> tuple[str, ...]:
    """Objectives that are installed and that the facts of a question can make."""
    return tuple(slug for slug in ("distillation", "prompt-learning") if slug in slugs("objective"))


def _bare_objective(slug: str) -> Finding:
    needs = {
        "distillation": ("there is no teacher", "pass `teacher=...`, a folder or hub id"),
        "prompt-learning": ("the classes have no names that can be said", 'pass `label_names=["...", "..."]`'),
    }
    why, fix = needs[slug]
    return error("method-needs-settings", f"`{slug}` without what it needs", why, fix)


def _with_objective(workload: Workload, slug: str, asked: bool = False) -> list[Candidate]:
    """Plans with an objective other than the labels alone, where the facts bear one."""
    make = {"distillation": _distilled, "prompt-learning": _prompted}[slug]
    objective = make(workload, asked)
    if objective is None:
        return []
    large = workload.model.num_parameters >= _LARGE
    method = find("method", "lora" if large and "lora" in slugs("method") else "full")()
    if slug == "distillation":
        return [Candidate(method=method, objective=objective)]
    passes = math.ceil(_SEEN_ROWS / max(workload.data.num_examples, 1))
    return [Candidate(method=method, objective=objective, num_train_epochs=float(min(max(passes, 3), 400)))]


def _distilled(workload: Workload, asked: bool) -> Objective | None:
    teacher = workload.data.teacher
    return None if teacher is None else find("objective", "distillation")(teacher=teacher)


def _speaks(model: ModelFacts) -> bool:
    """Whether the checkpoint holds the head by which it says words, by the classes that its configuration names.

    A body that was saved alone, as sentence encoders are, has lost it.
    """
    saved = model.config.get("architectures") or ()
    return not saved or any(
        re.search("MaskedLM|PreTraining|CausalLM|LMHead|ConditionalGeneration", name) for name in saved
    )


def _prompted(workload: Workload, asked: bool) -> Objective | None:
    """Words in the place of a mask, where the classes have names and the rows are few."""
    data = workload.data
    one_label = data.problem_type in (None, "single_label_classification")
    if workload.task.name != "sequence-classification" or not one_label or not nameable(data.label_names):
        return None
    if not asked and (data.num_examples > PROMPTED_ROWS or not _speaks(workload.model)):
        return None
    settings: Mapping[str, Any] = {"templates": templates(data, workload.model.side), "verbalizer": verbalizer(data)}
    return find("objective", "prompt-learning")(**settings)
