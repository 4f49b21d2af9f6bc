"""The parts of pages that come out of the code: settings, recipes, rules, codes, commands, as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SITUATIONS = {
    "encoder of 110M, 1,000 rows": {"side": "encoder", "num_parameters": 110_000_000, "num_examples": 1_000},
    "encoder of 335M, 50,000 rows": {"side": "encoder", "num_parameters": 335_000_000, "num_examples": 50_000},
    "decoder of 8B, 10,000 instructions": {"task": "causal-lm", "side": "decoder", "num_parameters": 8_000_000_000, "num_examples": 10_000},
    "encoder-decoder of 220M, 5,000 pairs": {"task": "seq2seq", "side": "seq2seq", "num_parameters": 220_000_000, "num_examples": 5_000},
}  # fmt: skip
"""For which models and rows a recipe is shown."""


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a bar inside a cell is escaped, a line break becomes a space."""
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(c) for c in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(value: object) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(value).split()))


# --------------------------------------------------------------------------------------------------- methods, objectives
def named(slug: str) -> Any:
    """A method, an objective, or the plan and its data."""
    from tunekit.discovery import find, slugs
    from tunekit.plan import DataSpec, Plan

    own = {"plan": Plan, "data": DataSpec}
    kind = next((k for k in ("method", "objective") if slug in slugs(k)), "")
    return own.get(slug) or find(kind, slug)


def instance(slug: str) -> Any:
    """A method as it is by default, or its first example where it needs values to exist."""
    cls = named(slug)
    try:
        return cls()
    except (TypeError, ValueError):
        return cls.examples()[0]


def facts(slug: str) -> str:
    """What a method or an objective is, as a list."""
    cls = named(slug)
    home = {"method": "tunekit.methods"}.get(_kind(slug), "tunekit.objectives")
    rows = [("in a plan", f"`kind: {slug}`"), ("in Python", f"`{home}.{cls.__name__}`")]
    if _kind(slug) == "method":
        saved = (
            "the whole model" if cls.family == "full" else "our own format" if cls.own_format and cls.family != "prompts"
            else "PEFT's files wherever PEFT gives the same answers"
        )  # fmt: skip
        rows += [
            ("changes the base's own weights", "yes" if cls.trains_base else "no"),
            ("can be merged into the base", "yes" if cls.merges else "no"),
            ("saved as", saved),
        ]
    return "".join(f"- **{name}:** {value}\n" for name, value in rows)


def _kind(slug: str) -> str:
    from tunekit.discovery import slugs

    return "method" if slug in slugs("method") else "objective"


def settings(slug: str) -> str:
    """Every setting with its type, default and meaning."""
    from tunekit.field_docs import settings_of

    found = settings_of(named(slug))
    if not found:
        return "It has no settings.\n"
    rows = [(f"`{name}`", s["type"], _default(s), s["text"]) for name, s in found.items()]
    return table(("setting", "type", "default", "meaning"), rows)


def _default(setting: dict[str, Any]) -> str:
    if "default" not in setting:
        return "must be given"
    words = {None: "`null`", True: "`true`", False: "`false`", "": "empty"}
    value = setting["default"]
    if isinstance(value, list | tuple | dict) and not value:
        return "empty"
    return words[value] if value is None or value is True or value is False or value == "" else f"`{value}`"


def recipe(slug: str) -> str:
    """What a plan starts from in some situations, with the sources."""
    from tunekit.advisor.rule import example

    rows, sources = [], list[str]()
    for name, situation in SITUATIONS.items():
        question = example("full", **situation)
        method = instance(slug)
        if method.supports(question.workload.model, question.workload.task) is not None and slug != "bitfit":
            continue
        r = method.recipe(question.workload)
        schedule = f"{r.lr_scheduler_type}, {r.warmup:.0%} warm-up"
        rows.append((name, f"{r.learning_rate:g}", f"{r.num_train_epochs:g}", r.effective_batch_size, schedule, f"{r.weight_decay:g}"))  # fmt: skip
        sources += r.sources
    head = ("for", "learning rate", "epochs", "rows a step", "schedule", "weight decay")
    listed = "\n".join(f"- {s}" for s in dict.fromkeys(sources))
    return f"{table(head, rows)}\nWhere these come from:\n\n{listed}\n"


def reference(slug: str) -> str:
    """Who published it."""
    cls = named(slug)
    doc = inspect.cleandoc(cls.__doc__ or "")
    listed = " ".join(doc.partition("References:")[2].split())
    return f"{listed or cls.reference}\n"


def methods() -> str:
    """All methods, each with a link to its page."""
    from tunekit.discovery import everything

    rows = [
        (f"[{cls.title}]({slug}.md)", f"`{slug}`", (cls.__doc__ or "").strip().partition("\n")[0], "yes" if cls.merges else "no")
        for slug, cls in everything("method").items()
    ]  # fmt: skip
    return table(("method", "in a plan", "what it does", "merges"), rows)


# ----------------------------------------------------------------------------------------------------------------- rules
def _fired() -> list[tuple[Any, Any, Any]]:
    from tunekit.discovery import everything

    return [
        (rule, q, f) for rule in everything("rule").values() for q in rule.fires() if (f := rule.judge(q)) is not None
    ]


def rules(group: str) -> str:
    """The rules of a group: `out`, `evidence`, `goal` or `note`, each with what it says, when, and on what ground."""
    from tunekit.discovery import everything

    said: dict[str, list[tuple[Any, Any]]] = {}
    for rule, q, f in _fired():
        said.setdefault(rule.slug, []).append((q, f))
    parts = []
    for slug, rule in everything("rule").items():
        if _group(slug, [f for _, f in said[slug]]) != group:
            continue
        rows = dict.fromkeys((_situation(q), f.seen, _points(f), f.why) for q, f in said[slug])
        body = table(("asked about", "it says", "points", "because"), rows)
        parts.append(f"### {rule.title} {{ #{slug} }}\n\n{body}\nSource: {rule.source}\n")
    return "\n".join(parts)


def _group(slug: str, findings: list[Any]) -> str:
    if slug.startswith("goal-"):
        return "goal"
    severities = {f.severity for f in findings}
    return "out" if "error" in severities else "evidence" if severities & {"favours", "disfavours"} else "note"


def _points(finding: Any) -> str:
    return f"{finding.points:+.2g}".replace("-", "\N{MINUS SIGN}") if finding.points else ""


def _situation(q: Any) -> str:
    from tunekit.advice_text import method_text

    w = q.workload
    side = {"encoder": "encoder", "decoder": "decoder", "seq2seq": "encoder-decoder"}[w.model.side]
    rows = f"{w.data.num_examples:,} rows" if w.data.num_examples else "no rows"
    return f"{method_text(q.plan)}; {side} of {_short(w.model.num_parameters)}, {w.task.name}, {rows}"


def _short(count: int) -> str:
    return next(f"{count / scale:.3g}{unit}" for scale, unit in ((1e9, "B"), (1e6, "M"), (1, "")) if count >= scale)


def evidence(slug: str) -> str:
    """What the rules say of one method or objective, asked all the questions that the rules' own examples ask."""
    rows = [
        (f"[{rule.title}](../choosing.md#{rule.slug})", f.seen, _points(f), f.why)
        for rule, q in _asked_of(slug)
        if (f := rule.judge(q)) is not None and f.severity in ("favours", "disfavours")
    ]
    if not rows:
        return "No rule speaks of it yet; it is ranked by what the simulation predicts and by the rules that hold for every method.\n"
    return table(("rule", "it says", "points", "because"), dict.fromkeys(rows))


def _asked_of(slug: str) -> list[tuple[Any, Any]]:
    """Each rule of the evidence with its questions, put about this method, or those that are about this objective."""
    from dataclasses import replace

    from tunekit.discovery import everything

    asked = [(r, q) for r in everything("rule").values() if not r.slug.startswith("goal-") for q in r.fires()]
    if _kind(slug) == "objective":
        return [(r, q) for r, q in asked if q.plan.objective is not None and q.plan.objective.slug == slug]
    usual = [(r, q) for r, q in asked if q.plan.objective is None or q.plan.objective.slug == "supervised"]
    own = [(r, q) for r, q in usual if q.plan.method.slug == slug]
    plain = [
        (r, replace(q, plan=q.plan.replace(method=instance(slug)))) for r, q in usual if q.plan.quantization is None
    ]
    return [*own, *plain]


# ----------------------------------------------------------------------------------------------------- codes and commands
def codes() -> str:
    """Every code, with what is seen, why and the way out, by its first word."""
    from tunekit.code_docs import all_codes

    groups: dict[str, list[str]] = {}
    for code, places in all_codes().items():
        head = "names put in" if code.startswith("*") else code.partition("-")[0]
        groups.setdefault(head, []).append(_code(code, places))
    parts = [f"## {head}\n\n" + "\n".join(entries) for head, entries in sorted(groups.items())]
    return "\n".join(parts)


def _code(code: str, places: Iterable[Any]) -> str:
    anchor = code.replace("*", "any").strip("-")
    lines = [f"### `{code}` {{ #{anchor} }}\n"]
    for said in dict.fromkeys((p.severity, p.seen, p.why, p.fix) for p in places):
        severity, seen, why, fix = said
        parts = [("seen", seen), ("why", why), ("way out", fix)]
        lines += [f"- *{severity}.* " + " ".join(f"**{n}:** {escaped(t)}." for n, t in parts if t)]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text whose braces, stars and brackets stay what they are, outside of ticks."""
    pieces = re.split(r"(`[^`]*`)", text.rstrip("."))
    return "".join(p if p.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", p) for p in pieces)


def commands() -> str:
    """Every command with its arguments, options and an example."""
    import typer

    from tunekit.cli.main import COMMANDS, app

    group: Any = typer.main.get_command(app)
    return "\n".join(_command(name, group.commands[name]) for name in COMMANDS)


def _command(name: str, made: Any) -> str:
    text, _, shown = inspect.cleandoc(made.help).partition("[dim]Example:[/dim]")
    rows = [(f"`{_spelt(p)}`", getattr(p, "help", "") or "") for p in made.params if p.name != "help"]
    what = table(("", "meaning"), rows)
    return f"## tunekit {name} {{ #{name} }}\n\n{text.strip()}\n\n```text\n$ {shown.strip()}\n```\n\n{what}"


def _spelt(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper()
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


# ------------------------------------------------------------------------------------------------------ callbacks, checks
def callbacks() -> str:
    """All callbacks, each with its first line."""
    from tunekit.discovery import everything

    rows = [(f"[`{c.__name__}`](api/callbacks.md)", (c.__doc__ or "").strip().partition("\n\n")[0]) for c in everything("callback").values()]  # fmt: skip
    return table(("callback", "what it does"), rows)


def checks() -> str:
    """What `tunekit.check` looks at, and the codes that come of it."""
    from tunekit.discovery import everything

    rows = [(c.title, ", ".join(f"[`{x}`](errors.md#{x})" for x in c.codes)) for c in everything("check").values()]
    return table(("looks at", "codes"), rows)


# ----------------------------------------------------------------------------------------------------- files of the tree
def benchmarks(root: Path) -> str:
    """The page of the benchmarks without its title, its links as plain words."""
    text = (root / "benchmarks" / "README.md").read_text("utf-8").partition("\n")[2]
    return re.sub(r"\[([^\]]+)\]\((?!http)[^)]+\)", r"\1", text)


def examples(root: Path) -> str:
    """Every example with its question and its source."""
    parts = []
    for path in sorted((root / "examples").glob("*.py")):
        if path.stem != "small":
            source = path.read_text("utf-8")
            question = source.split('"""')[1].strip().splitlines()[0]
            parts.append(
                f'## {path.stem.replace("_", " ")}\n\n{question}\n\n```python title="examples/{path.name}"\n{source}```\n'
            )
    return "\n".join(parts)
