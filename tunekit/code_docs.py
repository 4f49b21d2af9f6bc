"""What the codes of findings mean: read off the places in the source that raise them, the only copy."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

_MAKERS = ("error", "warning", "note")
_PACKAGES = ("tunekit", "tunekit.advisor", "tunekit.callbacks")
_PARTS = ("code", "seen", "why", "fix")
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
OPEN = "…"
"""Stands for what only the moment knows: a name, a number, a path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One place that says something under a code."""

    code: str
    """With `*` where a name is put in, as in `*-unknown`."""
    severity: str
    seen: str
    """What is said to be seen, `…` for what only the moment knows."""
    why: str
    fix: str
    module: str
    """Dotted name of the module that says it."""


@cache
def all_codes() -> Mapping[str, tuple[Said, ...]]:
    """Every code of a finding that tunekit itself can raise, with each place that raises it.

    Example:
        >>> all_codes()["lora-r"][0].why
        'a rank is at least 1'
    """
    found: dict[str, list[Said]] = {}
    for module, path in _modules():
        source = path.read_text("utf-8")
        if "finding import" not in source:
            continue
        for said in _said(ast.parse(source), module):
            found.setdefault(said.code, []).append(said)
    return {code: tuple(dict.fromkeys(found[code])) for code in sorted(found)}


def said_under(code: str) -> tuple[Said, ...]:
    """What is said under a code as a message shows it; empty for one that is not known.

    Example:
        >>> said_under("method-plugin-broken")[0].code
        '*-plugin-broken'
    """
    exact = all_codes().get(code, ())
    return exact or tuple(
        s for pattern, each in all_codes().items() if "*" in pattern and fnmatchcase(code, pattern) for s in each
    )


def _modules() -> Iterator[tuple[str, Path]]:
    for package in _PACKAGES:
        folder = Path(importlib.import_module(package).__path__[0])
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package != "tunekit" or parts[0] not in ("advisor", "callbacks"):
                yield ".".join((package, *(p for p in parts if p != "__init__"))), path


def _said(tree: ast.Module, module: str) -> Iterator[Said]:
    outer = _assignments(tree.body)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    calls = [(f, c) for f in (*functions, tree) for c in _own_calls(f)]

    def names_at(function: ast.AST, line: int) -> dict[str, list[ast.expr]]:
        inner = _assignments(list(ast.iter_child_nodes(function)))
        names = {name: [a.value for a in found] for name, found in outer.items()}
        return names | {name: _reaching(found, line) for name, found in inner.items()}

    def handed_in(function: ast.AST) -> list[dict[str, list[ast.expr]]]:
        """What the callers of a function of this module pass, as texts; once nothing where nobody calls it by name."""
        if not isinstance(function, ast.FunctionDef):
            return [{}]
        places = [(f, c) for f, c in calls if _called(c) == function.name]
        return [_bound(function, c, names_at(f, c.lineno)) for f, c in places] or [{}]

    for function, call in calls:
        if _called(call) in _MAKERS:
            names = names_at(function, call.lineno)
            given = {**dict(zip(_PARTS, call.args, strict=False)), **{k.arg: k.value for k in call.keywords if k.arg}}
            for passed in handed_in(function):
                yield from _made(_called(call), given, {**passed, **names}, module)
    for row in (n for n in ast.walk(tree) if isinstance(n, ast.Tuple) and _is_row(n)):
        yield from _made("error", dict(zip(_PARTS, row.elts[-4:], strict=True)), {}, module)


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_row(row: ast.Tuple) -> bool:
    """Whether a tuple is a row of a table of faults: a condition, and what an error is made of."""
    code = row.elts[-4] if len(row.elts) in (4, 5) else None
    return isinstance(code, ast.Constant) and isinstance(code.value, str) and _CODE.fullmatch(code.value) is not None


def _bound(function: ast.FunctionDef, call: ast.Call, names: Mapping[str, list[ast.expr]]) -> dict[str, list[ast.expr]]:
    """The parameters of a function as one call gives them."""
    parameters = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    given = {**dict(zip(parameters, call.args, strict=False)), **{k.arg: k.value for k in call.keywords if k.arg}}
    return {name: [ast.Constant(t) for t in _texts(value, names)] for name, value in given.items()}


def _own_calls(function: ast.AST) -> Iterator[ast.Call]:
    """Calls inside a function and not inside one that it defines."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)


def _made(
    maker: str, given: Mapping[str, ast.expr], names: Mapping[str, list[ast.expr]], module: str
) -> Iterator[Said]:
    texts = {part: _texts(given[part], names) if part in given else [""] for part in _PARTS}
    for code in texts["code"]:
        shown = code.replace(OPEN, "*")
        if not shown.strip("*-"):  # handed in whole by the caller of another module, which is read where it calls
            continue
        seen, why, fix = (_joined(texts[part]) for part in _PARTS[1:])
        yield Said(code=shown, severity=maker, seen=seen, why=why, fix=fix, module=module)


def _joined(texts: list[str]) -> str:
    """The alternatives of one text; those of which nothing is known say nothing."""
    known = [t for t in dict.fromkeys(texts) if t.strip(f"{OPEN} `'")]
    return " / ".join(known)


@dataclass(frozen=True, slots=True)
class _Assignment:
    value: ast.expr
    line: int
    branches: tuple[ast.If, ...]
    """The `if`s around it, the outermost first."""


def _assignments(
    nodes: list[ast.stmt] | list[ast.AST], branches: tuple[ast.If, ...] = ()
) -> dict[str, list[_Assignment]]:
    """What the names of one scope are given, tuples taken apart, in the order of the lines."""
    found: dict[str, list[_Assignment]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name, value in _pairs(target, node.value):
                    found.setdefault(name, []).append(_Assignment(value, node.lineno, branches))
        elif not isinstance(node, ast.FunctionDef | ast.ClassDef):
            deeper = (*branches, node) if isinstance(node, ast.If) else branches
            for name, inner in _assignments(list(ast.iter_child_nodes(node)), deeper).items():
                found.setdefault(name, []).extend(inner)
    return found


def _reaching(found: list[_Assignment], line: int) -> list[ast.expr]:
    """What a name may stand for at a line: the last assignment before it, or all of the branches that end before it."""
    before = [a for a in found if a.line <= line] or found
    last = before[-1]
    ended = next((b for b in last.branches if (b.end_lineno or 0) < line), None)
    if ended is None:
        return [last.value]
    inside = [a.value for a in before if ended in a.branches]
    earlier = [a for a in before if ended not in a.branches]
    return inside if ended.orelse or not earlier else [*_reaching(earlier, line), *inside]


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for t, v in zip(target.elts, value.elts, strict=True):
            yield from _pairs(t, v)


def _texts(node: ast.expr, names: Mapping[str, list[ast.expr]], depth: int = 0) -> list[str]:
    """The texts an expression may be; `…` for what cannot be told from the source."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if depth > 4:
        return [OPEN]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, names, depth + 1), *_texts(node.orelse, names, depth + 1)]
    if isinstance(node, ast.Name) and node.id in names:
        return [t for value in names[node.id] for t in _texts(value, names, depth + 1)][:4]
    if isinstance(node, ast.JoinedStr):
        return _product([_texts(v, names, depth) for v in node.values])
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value, names, depth + 1)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "nearest":
        return ["the message names the nearest known one"]
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "replace"
        and len(node.args) == 2
    ):
        old, new = (str(a.value) if isinstance(a, ast.Constant) else "" for a in node.args[:2])
        return [t.replace(old, new) for t in _texts(node.func.value, names, depth + 1)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _product([_texts(node.left, names, depth + 1), _texts(node.right, names, depth + 1)])
    return [OPEN]


def _product(parts: list[list[str]]) -> list[str]:
    made = [""]
    for choices in parts:
        made = [m + c for m in made for c in choices][:4]
    return made
