"""Advice as the page shows it: rows of the ranked table, what was rejected, memory by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.advice import Entry
from tunekit.advice_text import duration, memory, method_text, settings, trained
from tunekit.errors import TunekitError
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.finding import Finding
from tunekit.plan import Plan
from tunekit.report.charts import REST, Bar

MAX_BARS = 8


def entry_of(data: Mapping[str, Any]) -> Entry | None:
    """An entry as `Advice.to_dict` wrote it; None where another version did and this one cannot read it."""
    try:
        return Entry(
            plan=Plan.from_dict(data["plan"]),
            memory=MemoryEstimate(**data["memory"]) if data.get("memory") else None,
            duration=TimeEstimate(**data["duration"]) if data.get("duration") else None,
            findings=tuple(Finding(**f) for f in data.get("findings", [])),
            score=data.get("score", 0.0),
            tie=data.get("tie", 0),
        )
    except (TunekitError, TypeError, KeyError):
        return None


def advice_view(advice: Mapping[str, Any]) -> dict[str, Any]:
    """The advice as rows of words."""
    ranked = [e for e in map(entry_of, advice.get("ranked", [])) if e is not None]
    rejected = [e for e in map(entry_of, advice.get("rejected", [])) if e is not None]
    places = [e.tie for e in ranked]
    return {
        "ranked": [_ranked(e, places) for e in ranked],
        "tied": len(set(places)) < len(places),
        "rejected": [{"name": method_text(e.plan), "why": [_said(f) for f in e.moving[:2]]} for e in rejected],
        "findings": [_said(Finding(**f)) for f in advice.get("findings", [])],
        "version": advice.get("version", ""),
        "goal": advice.get("workload", {}).get("goal", ""),
    }


def _ranked(entry: Entry, places: list[int]) -> dict[str, Any]:
    place = places.index(entry.tie) + 1
    return {
        "place": f"{place}=" if places.count(entry.tie) > 1 else str(place),
        "name": method_text(entry.plan),
        "settings": settings(entry.plan),
        "trained": trained(entry),
        "memory": memory(entry),
        "duration": duration(entry),
        "reasons": [{"for": f.severity == "favours", "seen": f.seen, "source": f.source} for f in entry.moving],
    }


def _said(finding: Finding) -> str:
    """What a finding says, without its code."""
    text = str(finding).partition("] ")[2]
    return text if text.endswith((".", "?")) else f"{text}."


def memory_bars(record: Mapping[str, Any], advice: Mapping[str, Any] | None) -> list[Bar]:
    """One bar a ranked plan; without advice one for the run's own prediction."""
    if advice:
        entries = [e for e in map(entry_of, advice.get("ranked", [])) if e is not None and e.memory is not None]
        return [_bar(method_text(e.plan), e.memory) for e in entries[:MAX_BARS] if e.memory is not None]
    predicted = (record.get("predicted") or {}).get("memory")
    return [_bar("this run", MemoryEstimate(**predicted))] if predicted else []


def _bar(name: str, estimate: MemoryEstimate) -> Bar:
    """Parts, largest last-to-be-known: what the allocator and the process add comes at the end."""
    parts: dict[str, float] = {k: v for k, v in estimate.parts.items() if v > 0}
    rest = estimate.device_bytes - sum(parts.values())
    if rest > 0:
        parts[REST] = rest
    return Bar(name=name, parts=parts, interval=estimate.interval)
