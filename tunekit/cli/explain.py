"""`tunekit explain`: what a method, a well-known form of it, a setting of it, a setting of a plan, an objective, a rule or an error's code means."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from typing import Annotated, Any

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command

_OWNERS = ("plan", "data", "hardware", "workload", "bottleneck", "method", "objective", "rule", "callback", "check")
"""What a code may begin with besides a method's or an objective's slug."""


@command
def answer(
    topic: Annotated[
        str, typer.Argument(help="lora, lora.r, qlora, plan, plan.warmup, data, a rule's slug, an error's code, ...")
    ],
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Say what a method, an objective, a rule, a callback, a setting or an error's code means, and where it comes from.

    [dim]Example:[/dim] tunekit explain lora.use_rslora
    """
    from tunekit.advisor.variants import VARIANTS

    name, _, field = topic.partition(".")
    if topic in VARIANTS:
        data = _variant(topic, VARIANTS[topic])
        return Answer(data=data, text=lambda: _text(data))
    found = _find(name)
    if found is None:
        data = _code(name)
        return Answer(data=data, text=lambda: _text(data))
    data = _rule(found) if hasattr(found, "judge") else _class(found, name, field)
    return Answer(data=data, text=lambda: _text(data))


def _find(name: str) -> Any:
    """What has this name; None where it is the code of a finding."""
    from tunekit.discovery import find, slugs
    from tunekit.errors import InvalidError
    from tunekit.finding import error, nearest
    from tunekit.plan import DataSpec, Plan

    own = {"plan": Plan, "data": DataSpec}
    kinds = ("method", "objective", "rule", "callback")
    if name in own:
        return own[name]
    for kind in kinds:
        if name in slugs(kind):
            return find(kind, name)
    if _is_code(name):
        return None
    from tunekit.advisor.variants import VARIANTS
    from tunekit.code_docs import all_codes

    known = [*own, *VARIANTS, *(slug for kind in kinds for slug in slugs(kind)), *all_codes()]
    raise InvalidError(error("topic-unknown", f"{name!r}", "nothing here has that name", nearest(name, known)))


def _is_code(name: str) -> bool:
    """Whether something is said under this code; what stands for its `*` is a name too, as `lora` in `lora-type`."""
    from tunekit import advise
    from tunekit.code_docs import said_under
    from tunekit.discovery import slugs
    from tunekit.plan import Plan

    patterns = [s.code.split("*") for s in said_under(name) if "*" in s.code]
    if not patterns:
        return bool(said_under(name))
    fields = (n.replace("_", "-") for n in (*inspect.signature(Plan).parameters, *inspect.signature(advise).parameters))
    named = {*_OWNERS, *slugs("method"), *slugs("objective"), *fields}
    return any(name.removeprefix(head).removesuffix(tail) in named for head, tail in patterns)


def _class(cls: Any, name: str, field: str) -> dict[str, Any]:
    from tunekit.errors import InvalidError
    from tunekit.field_docs import settings_of
    from tunekit.finding import error, nearest

    settings = settings_of(cls)
    if field:
        if field not in settings:
            raise InvalidError(
                error(
                    "setting-unknown", f"`{topic_of(name, field)}`", "no such setting", nearest(field, list(settings))
                )
            )
        return {"topic": topic_of(name, field), **settings[field]}
    return {
        "topic": name,
        "text": inspect.cleandoc(cls.__doc__ or ""),
        "reference": getattr(cls, "reference", ""),
        "settings": settings,
    }


def _variant(name: str, variant: Any) -> dict[str, Any]:
    """What a plan writes for a well-known form of a method."""
    method = {"kind": variant.method, **variant.settings}
    written = {"method": method} | ({"quantization": variant.quantization} if variant.quantization else {})
    return {"topic": name, "text": variant.text, "reference": variant.reference, "plan": written}


def topic_of(name: str, field: str) -> str:
    """What a user types for a setting."""
    return f"{name}.{field}"


def _rule(rule: Any) -> dict[str, Any]:
    examples = [rule.judge(question) for question in rule.fires()]
    return {
        "topic": rule.slug,
        "text": rule.title,
        "reference": rule.source,
        "examples": [f.to_dict() for f in examples if f is not None],
    }


def _code(code: str) -> dict[str, Any]:
    from tunekit.code_docs import said_under

    places = [
        {"severity": s.severity, "seen": s.seen, "why": s.why, "fix": s.fix, "module": s.module}
        for s in said_under(code)
    ]
    return {"topic": code, "text": "what is said under this code", "places": places}


def _text(data: dict[str, Any]) -> str:
    lines = [data["topic"], "", *_flowed(data["text"] or "(no further words)")]
    if "plan" in data:
        lines += ["", "in a plan", *(f"  {key}: {json.dumps(value)}" for key, value in data["plan"].items())]
    if "type" in data:
        lines += ["", f"{data['type']}{_default(data)}"]
    if data.get("settings"):
        lines += ["", "settings"]
    for name, setting in data.get("settings", {}).items():
        lines.append(f"  {name}: {setting['type']}{_default(setting)}")
        lines += _flowed(setting["text"], "      ")
    for place in data.get("places", []):
        lines += ["", f"{place['severity']} in {place['module']}"]
        lines += [f"  {part}: {place[part]}" for part in ("seen", "why", "fix") if place[part]]
    lines += [f"  says: {example['seen']}" for example in data.get("examples", [])]
    if data.get("reference"):
        lines += ["", f"source: {data['reference']}"]
    return "\n".join(piece for line in lines for piece in _cut(line))


def _flowed(text: str, indent: str = "") -> list[str]:
    """Lines of a docstring: what flows is one line a paragraph, what is set (lists, examples, sections) stays as it stands."""
    lines: list[str] = []
    for block in text.split("\n\n"):
        told = block.splitlines()
        if told[:1] == ["References:"]:
            told = [told[0], "    " + " ".join(line.strip() for line in told[1:])]
        is_set = any(line.startswith((" ", ">>>", "- ")) for line in told)
        lines += ["", *(f"{indent}{line}" for line in (told if is_set else [" ".join(told)]))]
    return lines[1:]


def _cut(line: str) -> list[str]:
    """A line cut at its words where it is wider than the terminal, or than 100 columns where there is none."""
    body = line.lstrip()
    indent = line[: len(line) - len(body)]
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    if not body or body.startswith((">>>", "...")):
        return [line]
    again = indent + ("  " if len(indent) == 2 else "")  # a word and what it says
    return textwrap.wrap(
        body, width, initial_indent=indent, subsequent_indent=again, break_long_words=False, break_on_hyphens=False
    )


def _default(setting: dict[str, Any]) -> str:
    if "default" not in setting:
        return "; must be given"
    value = setting["default"]
    words = {None: "null", True: "true", False: "false", "": "empty"}
    shown = (
        words.get(value, value)
        if not isinstance(value, list | dict | int | float) or isinstance(value, bool)
        else value
    )
    return f"; default {shown if shown not in ([], {}) else 'empty'}"
