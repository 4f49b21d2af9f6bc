"""Typed fields of frozen dataclasses: checked when made, written to plain values and read back strictly."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from tunekit.errors import raise_all
from tunekit.finding import Finding, error, nearest

T = TypeVar("T")


@lru_cache(maxsize=256)
def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of the dataclass's own fields, in order."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in dataclasses.fields(cls) if f.init}


def describe(hint: Any) -> str:
    """A type as a sentence would name it.

    Example:
        >>> describe(Literal["a", "b"] | None)
        '`a` or `b` or null'
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        names = [describe(a) for a in get_args(hint)]
        return f"{', '.join(names[:-1])} or {names[-1]}"
    if origin is Literal:
        values = [f"`{a}`" for a in get_args(hint)]
        return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
    if origin is tuple:
        return f"a list of {describe(get_args(hint)[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    plain = {
        int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"
    }  # fmt: skip
    return plain.get(hint) or f"a `{getattr(hint, '__name__', hint)}`"


def fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether `value` is of the type, and the value with lists made tuples and mappings copied."""
    origin = get_origin(hint)
    if hint is Any:
        return True, value
    if origin in (Union, types.UnionType):
        for arg in get_args(hint):
            ok, fitted = fit(value, arg)
            if ok:
                return True, fitted
        return False, value
    if origin is Literal:
        return isinstance(value, str | int) and value in get_args(hint), value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            return False, value
        pairs = [fit(v, get_args(hint)[0]) for v in value]
        return all(ok for ok, _ in pairs), tuple(v for _, v in pairs)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping), dict(value) if isinstance(value, Mapping) else value
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is type(None):
        return value is None, value
    return isinstance(value, hint), value


def check_types(obj: Any, prefix: str) -> list[Finding]:
    """Normalises every field of a frozen dataclass in place of construction and returns the type faults.

    Called by `__post_init__` only: afterwards the object never changes.
    """
    faults = []
    for name, hint in hints(type(obj)).items():
        ok, fitted = fit(getattr(obj, name), hint)
        if ok:
            object.__setattr__(obj, name, fitted)
        else:
            faults.append(
                error(
                    f"{prefix}-type",
                    f"`{name}` of `{type(obj).__name__}` is {getattr(obj, name)!r}",
                    f"it must be {describe(hint)}",
                    f"set `{name}` to {describe(hint)}",
                )
            )
    return faults


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as values that JSON and YAML know."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_plain(getattr(value, name)) for name in hints(type(value))}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def unknown_keys(cls: type, keys: list[str], prefix: str, foreign: Mapping[str, str] | None = None) -> list[Finding]:
    """One fault for each key that is no field of `cls`, naming the nearest field, or ours for a host's own name."""
    known = list(hints(cls))
    faults = []
    for key in keys:
        if key in known:
            continue
        if foreign and key in foreign:
            faults.append(
                error(f"{prefix}-host-field", f"`{key}`", f"`{cls.__name__}` has a name of its own for it", f"write {foreign[key]}")
            )
        else:
            faults.append(error(f"{prefix}-unknown-field", f"`{key}`", f"no field of `{cls.__name__}`", nearest(key, known)))
    return faults


def from_plain(cls: type[T], data: Mapping[str, Any], prefix: str, foreign: Mapping[str, str] | None = None) -> T:
    """Builds a dataclass from a mapping, strictly; numbers that YAML took for text (`1e-4`) are read as numbers.

    Raises:
        InvalidError: every unknown, missing and ill-typed field at once.
    """
    faults = unknown_keys(cls, [str(k) for k in data], prefix, foreign)
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in data:
            faults.append(error(f"{prefix}-missing-field", f"no `{f.name}`", f"`{cls.__name__}` needs it", f"add `{f.name}:`"))
    raise_all(faults)
    return cls(**{k: _number(v, hints(cls)[k]) for k, v in data.items()})


def _number(value: Any, hint: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; a text that spells a number becomes one where a float is wanted."""
    if isinstance(value, str) and float in (hint, *get_args(hint)) and str not in (hint, *get_args(hint)):
        try:
            return float(value)
        except ValueError:
            return value
    return value
