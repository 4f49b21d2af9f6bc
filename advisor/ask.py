"""The whole way from a question to an answer: observe, propose, fit, judge, order."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tunekit.advice import Advice, Entry
from tunekit.advisor.candidates import unknown
from tunekit.advisor.fit import Fitted, Screened, Simulator, fit
from tunekit.advisor.judge import judge
from tunekit.advisor.observe.dataset import observe_data
from tunekit.advisor.observe.given import Given
from tunekit.advisor.observe.hardware import hardware as observe_hardware
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.order import order
from tunekit.advisor.propose import held_out, propose
from tunekit.advisor.propose import max_length as proposed_length
from tunekit.advisor.rescue import nothing_fits
from tunekit.advisor.stopping import without_rows
from tunekit.errors import InvalidError, TunekitError, raise_all
from tunekit.finding import Finding, error, nearest, note
from tunekit.task import Task
from tunekit.workload import Goal, Hardware, Workload

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def advise(
    model: str | Path | PretrainedConfig | PreTrainedModel,
    dataset: Any = None,
    task: str | Task = "auto",
    columns: Mapping[str, str] | None = None,
    hardware: str | Hardware = "auto",
    goal: Goal = "balanced",
    methods: Iterable[str] | None = None,
    num_examples: int | None = None,
    num_labels: int | None = None,
    mean_tokens: float | None = None,
    max_length: int | None = None,
    label_names: Sequence[str] | None = None,
    teacher: str | Path | None = None,
    adapters: Sequence[str] | None = None,
    unlabelled: int | None = None,
    own_loss: float | Literal["measure"] | None = None,
) -> Advice:
    """Compares the methods for one question; `tunekit.advise` documents the arguments.

    Raises:
        TunekitError: what is wrong with the question; the plain values are checked together, before anything is read.

    Example:
        >>> from transformers import BertConfig
        >>> config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=500)
        >>> advice = advise(config, task="sequence-classification", num_examples=800, num_labels=4, mean_tokens=20,
        ...                 hardware="24GB", methods=["lora", "full"])
        >>> len(advice.ranked), advice.rejected
        (2, ())
    """
    given, where, slugs = _plain_values(
        hardware, goal, methods, num_examples, num_labels, mean_tokens, max_length, label_names, teacher, adapters, unlabelled,
        own_loss,
    )  # fmt: skip
    facts = model_facts(model)
    seen = observe_data(facts, dataset, task, columns, given, _live(model))
    workload = Workload(
        model=facts, data=seen.data, task=seen.task, hardware=where, goal=goal, data_source=seen.source, max_length=max_length
    )  # fmt: skip
    return answer(workload, slugs, seen.findings)


def _live(model: Any) -> PreTrainedModel | None:
    """The model, where it is one and not its name or configuration."""
    from transformers import PreTrainedModel

    return model if isinstance(model, PreTrainedModel) else None


def answer(
    workload: Workload,
    methods: Iterable[str] | None = None,
    findings: Iterable[Finding] = (),
    simulator: Simulator | None = None,
) -> Advice:
    """The advice for a workload: pure, but for the cache of traces.

    Args:
        workload: The question.
        methods: Slugs to restrict the candidates to.
        findings: What was seen while observing.
        simulator: Predicts memory and duration; None traces the step.
    """
    simulator = simulator or _tracing()
    plans, refused = propose(workload, methods)
    with _no_collection():
        fitted = _once([fit(workload, plan, simulator) for plan in plans])
    entries = [*(_entry(workload, f) for f in fitted), *refused]
    ranked, rejected, shared = order(workload, entries)
    about = [*findings, *_about_lengths(workload), *without_rows(workload, held_out(workload)), *shared]
    if not ranked:
        about += nothing_fits(workload, rejected, simulator)
    return Advice(workload=workload, ranked=ranked, rejected=rejected, findings=tuple(about), version=version())


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within it Python's garbage collector rests: a recorded step makes a great many small objects and hardly a cycle, and
    looking for cycles took an eighth of an answer's time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _once(fitted: list[Fitted]) -> list[Fitted]:
    """Without plans that came out the same, such as LoRA that only fits on a 4-bit base beside QLoRA."""
    found: dict[str, Fitted] = {}
    for f in fitted:
        found.setdefault(f.plan.to_json(), f)
    return list(found.values())


def _tracing() -> Simulator:
    """The simulator that traces the real step without weights."""
    from tunekit.advisor.simulate import estimate_memory, estimate_time, screen
    from tunekit.advisor.simulate.estimate import needed_bytes

    return Simulator(
        least=lambda workload, plan: needed_bytes(plan, workload.hardware, workload.data, workload.model) or 0,
        screen=lambda workload, plan: Screened(**screen(plan, workload.hardware, workload.data, workload.model)),
        # Whether a plan fits is told by what is needed: that varying lengths also reserve what room there is rules out none, and
        # replaying them would double an answer's time. `tunekit.estimate_memory` does it for the plan that is chosen.
        memory=lambda workload, plan: estimate_memory(
            plan, workload.hardware, workload.data, model=workload.model, replays=False
        ),
        duration=lambda workload, plan: estimate_time(plan, workload.hardware, workload.data, model=workload.model),
    )


def _entry(workload: Workload, fitted: Fitted) -> Entry:
    if fitted.refused is not None:
        return Entry(plan=fitted.plan, memory=None, duration=None, findings=(fitted.refused,))
    findings = judge(workload, fitted.plan, fitted.memory, fitted.duration)
    return Entry(plan=fitted.plan, memory=fitted.memory, duration=fitted.duration, findings=findings)


def _plain_values(
    hardware: str | Hardware, goal: str, methods: Iterable[str] | None, *facts: Any
) -> tuple[Given, Hardware, tuple[str, ...] | None]:
    """What can be checked without reading the model or the data, every fault at once."""
    faults: list[Finding] = []
    given, where = Given(), None
    goals = get_args(Goal)
    if goal not in goals:
        faults.append(error("goal-unknown", f"goal {goal!r}", "no such goal", nearest(goal, goals)))
    slugs = (methods,) if isinstance(methods, str) else tuple(methods) if methods is not None else None
    for slug in slugs or ():
        faults += unknown(slug)
    if slugs == ():
        faults.append(
            error("methods-empty", "`methods` is empty", "there is nothing to compare", "leave it out to compare all")
        )
    try:
        given = Given.of(*facts)
    except TunekitError as e:
        faults += e.findings
    try:
        where = observe_hardware(hardware)
    except InvalidError as e:
        faults += e.findings
    raise_all(faults)
    assert where is not None
    return given, where, slugs


def _about_lengths(workload: Workload) -> list[Finding]:
    """How many rows the plans' truncation cuts, where it cuts any."""
    limit = proposed_length(workload)
    cut = workload.data.truncated_share(limit) if limit else 0.0
    if cut == 0.0 or limit is None:
        return []
    why = "the longest rows set the memory of the whole run" if workload.max_length is None else "`max_length` says so"
    if workload.model.context_length is not None and limit >= workload.model.context_length:
        why = f"the model's positions end at {workload.model.context_length:,}"
    return [
        note(
            "rows-truncated",
            f"{100 * cut:.1f} % of the rows are cut at {limit:,} tokens",
            why,
            "pass `max_length=` for another limit",
        )
    ]


@lru_cache(maxsize=1)
def version() -> str:
    """Version of tunekit, and digests of its rules and its catalogue: what the answer depends on besides the question."""
    from importlib import import_module

    from tunekit.advisor import catalogue, rules

    # By name: only the version is wanted of the public face, which stands above the advisor.
    parts = [f"tunekit {import_module('tunekit').__version__}"]
    for name, package in (("rules", rules), ("catalogue", catalogue)):
        files = sorted(
            p for folder in package.__path__ for p in Path(folder).iterdir() if p.suffix in (".py", ".yaml", ".json")
        )
        digest = hashlib.sha256(b"\0".join(p.name.encode() + b"\0" + p.read_bytes() for p in files)).hexdigest()
        parts.append(f"{name} {digest[:8]}")
    return ", ".join(parts)
