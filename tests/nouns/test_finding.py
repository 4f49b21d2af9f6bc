"""Findings read as sentences, carry stable codes and are plain values."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.finding import Finding, error, nearest, note, warning


@pytest.mark.parametrize(
    ("why", "fix", "text"),
    [
        ("", "", "[odd] it is 3"),
        ("it must be 2", "", "[odd] it is 3: it must be 2."),
        ("it must be 2.", "set it to 2.", "[odd] it is 3: it must be 2. Set it to 2."),
        ("", "set it to 2", "[odd] it is 3. Set it to 2."),
        ("no such field", "did you mean `lr`?", "[odd] it is 3: no such field. Did you mean `lr`?"),
    ],
)
def test_a_finding_reads_as_sentences_with_one_stop_each(why: str, fix: str, text: str) -> None:
    assert str(error("odd", "it is 3", why, fix)) == text


@pytest.mark.parametrize("code", ["", "Upper", "under_score", "two--hyphens", "-a", "a-", "a b"])
def test_codes_are_kebab_case(code: str) -> None:
    with pytest.raises(AssertionError, match="kebab-case"):
        error(code, "seen")


def test_a_severity_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AssertionError, match="fatal"):
        Finding(code="a", severity="fatal", seen="s")


def test_the_shorthands_set_the_severity() -> None:
    assert [make("a", "s").severity for make in (error, warning, note)] == ["error", "warning", "note"]


def test_a_finding_is_plain_json_without_what_is_empty() -> None:
    plain = error("odd", "it is 3", fix="set it to 2").to_dict()
    assert json.loads(json.dumps(plain)) == {
        "code": "odd",
        "severity": "error",
        "seen": "it is 3",
        "fix": "set it to 2",
    }


def test_a_typing_error_is_answered_with_the_nearest_name() -> None:
    assert nearest("learning_rat", ["learning_rate", "optim"]) == "did you mean `learning_rate`?"
    assert nearest("zzz", ["learning_rate", "optim"]) == "known: `learning_rate`, `optim`"
    assert nearest(None, ["learning_rate"]) == "known: `learning_rate`"


@given(st.sampled_from(["learning_rate", "max_length", "quantization"]), st.data())
def test_one_slip_of_the_finger_is_always_understood(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    slipped = name[:at] + data.draw(st.sampled_from(["", "x", name[at] * 2])) + name[at + 1 :]
    assert (
        nearest(slipped, ["learning_rate", "max_length", "quantization", "optim", "seed"]) == f"did you mean `{name}`?"
    )
