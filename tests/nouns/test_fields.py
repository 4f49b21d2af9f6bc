"""Typed fields: what a value may be, the plain form it gets, and every fault at once."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.errors import InvalidError, raise_all
from tunekit.fields import check_types, describe, fit, from_plain, to_plain


class Kernel(str, enum.Enum):
    fast = "adamw_fast"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    size: int
    share: float = 0.5
    names: tuple[str, ...] = ()
    pairs: tuple[tuple[str, int], ...] = ()
    ranks: Mapping[str, int] | None = None
    mode: Literal["a", "b"] | None = None

    def __post_init__(self) -> None:
        raise_all(check_types(self, "part"))


@pytest.mark.parametrize(
    ("value", "hint", "fitted"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        (["a", 1], tuple[str, int], ("a", 1)),
        ([["a", 1]], tuple[tuple[str, int], ...], (("a", 1),)),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        (None, int | None, None),
        ("all", tuple[str, ...] | str | None, "all"),
        (["q", "k"], tuple[str, ...] | str | None, ("q", "k")),
        (Kernel.fast, str, "adamw_fast"),
        (True, bool, True),
        (False, bool | Literal["lora_only"], False),
        ([], tuple[str, ...], ()),
    ],
)
def test_a_value_of_the_type_gets_its_plain_form(value: Any, hint: Any, fitted: Any) -> None:
    ok, plain = fit(value, hint)
    assert ok
    assert plain == fitted
    assert type(plain) is type(fitted)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int), (True, float), ("3", int), (3.0, int), (float("nan"), float), (float("inf"), float), (10**400, float),
        ("abc", tuple[str, ...]), ([1], tuple[str, ...]), (["a"], tuple[str, int]), (["a", 1, 2], tuple[str, int]),
        ({"a": "x"}, Mapping[str, int]), ({1: 1}, Mapping[str, int]), ([("a", 1)], Mapping[str, int]), ("c", Literal["a", "b"]),
        (True, Literal[1]), (0, bool), (None, str), (["a"], Literal["a"]), (b"text", str),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(value: Any, hint: Any) -> None:
    assert not fit(value, hint)[0]


def test_numpy_scalars_become_python_numbers() -> None:
    import numpy as np

    assert [type(fit(v, h)[1]) for v, h in ((np.int64(3), int), (np.float32(0.5), float), (np.int32(2), float))] == [
        int,
        float,
        float,
    ]
    assert type(fit(np.str_("a"), str)[1]) is str


def test_types_are_described_as_a_person_would() -> None:
    assert describe(tuple[str, ...] | None) == "a list of a text or null"
    assert describe(tuple[str, int]) == "a list of 2 (a text, a whole number)"
    assert describe(Mapping[str, int]) == "a mapping"
    assert describe(bool | Literal["gaussian", "pissa"]) == "true or false or `gaussian` or `pissa`"


def test_every_unknown_missing_and_ill_typed_field_is_told_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        from_plain(Part, {"sise": 3, "share": "much", "mode": "c"}, "part")
    assert sorted(caught.value.codes) == ["part-missing-field", "part-type", "part-type", "part-unknown-field"]
    with pytest.raises(InvalidError) as caught:
        from_plain(Part, {"size": "three", "share": "much", "modus": "c"}, "part")
    assert sorted(caught.value.codes) == ["part-type", "part-type", "part-unknown-field"]


def test_a_habitual_name_is_answered_with_ours() -> None:
    with pytest.raises(InvalidError, match="Write `size:`") as caught:
        from_plain(Part, {"size": 1, "width": 3}, "part", {"width": "`size:`"})
    assert caught.value.codes == ("part-host-field",)


def test_a_text_that_spells_a_number_is_one_only_where_a_number_is_wanted() -> None:
    assert from_plain(Part, {"size": 1, "share": "1e-4"}, "part").share == 1e-4
    with pytest.raises(InvalidError):
        from_plain(Part, {"size": "1"}, "part")
    with pytest.raises(InvalidError):
        from_plain(Part, {"size": 1, "share": "nan"}, "part")


def test_what_the_user_passed_is_never_changed() -> None:
    names, ranks = ["a"], {"q": 1}
    part = Part(size=1, names=names, ranks=ranks)  # type: ignore[arg-type]
    names.append("b")
    ranks["k"] = 2
    assert part.names == ("a",)
    assert part.ranks == {"q": 1}


PARTS = st.builds(
    Part,
    size=st.integers(),
    share=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60),
    names=st.lists(st.text()),
    pairs=st.lists(st.tuples(st.text(), st.integers())),
    ranks=st.none() | st.dictionaries(st.text(), st.integers()),
    mode=st.sampled_from([None, "a", "b"]),
)


@given(PARTS)
def test_plain_values_read_back_to_an_equal_object(part: Part) -> None:
    import json

    assert from_plain(Part, json.loads(json.dumps(to_plain(part))), "part") == part
