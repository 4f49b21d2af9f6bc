"""Typed fields of frozen dataclasses: checked when made, written to plain values and read back strictly."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from tunekit.errors import TunekitError, raise_all
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
        args = get_args(hint)
        if args[-1] is Ellipsis:
            return f"a list of {describe(args[0])}"
        return f"a list of {len(args)} ({', '.join(describe(a) for a in args)})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    plain = {
        int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", type(None): "null"
    }  # fmt: skip
    return plain.get(hint) or f"a `{getattr(hint, '__name__', hint)}`"


def fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether `value` is of the type, and the value in its plain form.

    Lists become tuples, mappings are copied, whole numbers become floats where a float is wanted, and members of a
    text enumeration or numpy scalars become what they stand for, so that every value can be written to a file.

    Example:
        >>> fit([1, 2], tuple[float, ...])
        (True, (1.0, 2.0))
        >>> fit("1", int)
        (False, '1')
    """
    origin = get_origin(hint)
    if hint is Any:
        return True, value
    if origin in (Union, types.UnionType):
        return next(((ok, v) for ok, v in (fit(value, arg) for arg in get_args(hint)) if ok), (False, value))
    if origin is tuple:
        return _fit_list(value, get_args(hint))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _fit_mapping(value, *get_args(hint))
    # `str.__str__` gives the plain text of a subclass: of an enumeration's member its value, not its name.
    return _fit_one(str.__str__(value) if isinstance(value, str) else value, hint)


def _fit_one(value: Any, hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) is Literal:
        return any(value == a and type(value) is type(a) for a in get_args(hint)), value
    if hint is type(None):
        return value is None, value
    if isinstance(value, bool) and hint in (int, float):
        return False, value
    if hint is int and isinstance(value, Integral):
        return True, int(value)
    if hint is float and isinstance(value, Real):
        return _fit_float(value)
    return isinstance(value, hint), value


def _fit_float(value: Real) -> tuple[bool, Any]:
    try:
        plain = float(value)
    except OverflowError:  # an int beyond every float
        return False, value
    return math.isfinite(plain), plain


def _fit_list(value: Any, args: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, value
    wanted = (args[0],) * len(value) if args[-1] is Ellipsis else args
    pairs = [fit(v, hint) for v, hint in zip(value, wanted, strict=False)]
    return len(value) == len(wanted) and all(ok for ok, _ in pairs), tuple(v for _, v in pairs)


def _fit_mapping(value: Any, key_hint: Any = Any, value_hint: Any = Any) -> tuple[bool, Any]:
    if not isinstance(value, Mapping):
        return False, value
    pairs = [(fit(k, key_hint), fit(v, value_hint)) for k, v in value.items()]
    return all(k[0] and v[0] for k, v in pairs), {k[1]: v[1] for k, v in pairs}


def type_faults(cls: type, values: Mapping[str, Any], prefix: str) -> dict[str, Finding]:
    """One fault for each of the named fields whose value is of another type than the field's."""
    faults = {}
    for name, hint in hints(cls).items():
        if name in values and not fit(values[name], hint)[0]:
            seen = f"`{name}` of `{cls.__name__}` is {values[name]!r}"
            faults[name] = error(f"{prefix}-type", seen, fix=f"set it to {describe(hint)}")
    return faults


def check_types(obj: Any, prefix: str) -> list[Finding]:
    """Puts every field of a frozen dataclass into its plain form and returns the type faults.

    Called by `__post_init__` only: afterwards the object never changes.
    """
    cls: type = type(obj)
    unfit = {}
    for name, hint in hints(cls).items():
        ok, fitted = fit(getattr(obj, name), hint)
        if ok:
            object.__setattr__(obj, name, fitted)
        else:
            unfit[name] = getattr(obj, name)
    return list(type_faults(cls, unfit, prefix).values())


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
    known, foreign = list(hints(cls)), foreign or {}
    faults = []
    for key in keys:
        if key not in known and key in foreign:
            why = f"`{cls.__name__}` has a name of its own for it"
            faults.append(error(f"{prefix}-host-field", f"`{key}`", why, f"write {foreign[key]}"))
        elif key not in known:
            why = f"no field of `{cls.__name__}`"
            faults.append(error(f"{prefix}-unknown-field", f"`{key}`", why, nearest(key, known)))
    return faults


def missing_keys(cls: type, data: Mapping[str, Any], prefix: str) -> list[Finding]:
    """One fault for each field without a default that `data` does not name."""
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    return [
        error(f"{prefix}-missing-field", f"no `{name}`", f"`{cls.__name__}` needs it", f"add `{name}:`")
        for name in required
        if name not in data
    ]


def from_plain(cls: type[T], data: Mapping[str, Any], prefix: str, foreign: Mapping[str, str] | None = None) -> T:
    """Builds a dataclass from a mapping, strictly; numbers that YAML took for text (`1e-4`) are read as numbers.

    Raises:
        InvalidError: every unknown, missing and ill-typed field at once.
    """
    missing = missing_keys(cls, data, prefix)
    faults = [*unknown_keys(cls, [str(k) for k in data], prefix, foreign), *missing]
    values = read_numbers(cls, data)
    if missing:
        raise_all([*faults, *type_faults(cls, values, prefix).values()])
    try:
        made = cls(**values)
    except TunekitError as e:
        faults += e.findings
    raise_all(faults)
    return made


def read_numbers(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `data` that are fields of `cls`, with the texts that spell a number made numbers.

    YAML 1.1 reads `1e-4` as text; where a float and no text is wanted it can only mean the number.
    """
    return {name: _number(data[name], hint) for name, hint in hints(cls).items() if name in data}


def _number(value: Any, hint: Any) -> Any:
    kinds = (hint, *get_args(hint))
    if isinstance(value, str) and float in kinds and str not in kinds:
        try:
            return float(value)
        except ValueError:
            return value
    return value
