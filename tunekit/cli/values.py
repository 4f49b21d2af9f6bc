"""`key=value` on the command line: settings of a plan by dotted name, columns by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunekit.errors import InvalidError, raise_all
from tunekit.finding import Finding, error
from tunekit.plan import Plan


def read_plan(path: str, changes: Iterable[str] = ()) -> Plan:
    """The plan of a file with some settings changed.

    Args:
        path: The plan file.
        changes: `key=value`, where the key may be dotted (`method.r=16`) and the value is YAML (`null`, `1e-4`, `[q, v]`).

    Raises:
        InvalidError: every fault at once; `override-form` for what is no `key=value`.
    """
    plan = Plan.load(path)
    pairs = list(changes)
    return Plan.from_dict(changed(plan.to_dict(), pairs)) if pairs else plan


def changed(values: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """A copy of nested mappings with values put in by dotted key.

    Example:
        >>> changed({"seed": 1, "method": {"kind": "lora", "r": 8}}, ["method.r=16", "seed=7"])
        {'seed': 7, 'method': {'kind': 'lora', 'r': 16}}
    """
    result, faults = dict(values), list[Finding]()
    for change in changes:
        try:
            key, value = _pair(change)
            _put(result, key.split("."), value, change)
        except InvalidError as e:
            faults += e.findings
    raise_all(faults)
    return result


def goes_on(command: str, file: str, changes: Iterable[str], output_dir: str) -> str:
    """The command that takes an ended run up again, in a sentence; empty where no whole checkpoint is there.

    Args:
        command: `train` or `launch`.
        file: The plan file.
        changes: What the command was given beside it.
        output_dir: The plan's.
    """
    import shlex

    from tunekit.checkpoint import last_checkpoint

    last = last_checkpoint(output_dir)
    line = shlex.join(["tunekit", command, file, *changes, "--resume"])
    return f"`{line}` goes on from {Path(last).name}" if last else ""


def _pair(change: str) -> tuple[str, Any]:
    import yaml

    key, equals, text = change.partition("=")
    if not equals or not all(key.split(".")):
        raise InvalidError(_malformed(change, "it is no `key=value`"))
    try:
        value = yaml.safe_load(text) if text else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidError(_malformed(change, "the value is no YAML")) from None
    return key, value


def _put(target: dict[str, Any], keys: list[str], value: Any, change: str) -> None:
    """Puts a value in; mappings on the way are copied, so that what was passed stays as it is."""
    for key in keys[:-1]:
        inner = target.get(key)
        if isinstance(inner, str) and key in ("method", "objective"):
            inner = {"kind": inner}
        if inner is not None and not isinstance(inner, Mapping):
            raise InvalidError(_malformed(change, f"`{key}` holds no further settings"))
        target[key] = dict(inner or {})
        target = target[key]
    target[keys[-1]] = value


def _malformed(change: str, why: str) -> Finding:
    return error(
        "override-form", f"{change!r}", why, "write `learning_rate=1e-4` or `method.r=16`; quote what has spaces"
    )


def pairs(items: Iterable[str], option: str) -> dict[str, str]:
    """`name=value` texts as a mapping.

    Raises:
        InvalidError: `pair-form`, every faulty one at once.

    Example:
        >>> pairs(["text=sentence", "label=intent"], "--column")
        {'text': 'sentence', 'label': 'intent'}
    """
    found, faults = {}, []
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            faults.append(
                error("pair-form", f"`{option} {item}`", "it is no `name=value`", f"write `{option} text=sentence`")
            )
        found[name] = value
    raise_all(faults)
    return found
