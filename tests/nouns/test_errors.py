"""The error family: each one is also the standard library's, carries every finding, and survives a trip between processes."""

from __future__ import annotations

import pickle

import pytest

from tunekit import errors
from tunekit.errors import InvalidError, TunekitError, raise_all
from tunekit.finding import error, note, warning

FAMILY = {
    "InvalidError": ValueError,
    "UnsupportedError": ValueError,
    "MissingError": FileNotFoundError,
    "OccupiedError": FileExistsError,
    "UnreadableError": OSError,
    "MissingPackageError": ImportError,
    "RunError": RuntimeError,
}


def findings(count: int) -> list:
    return [error(f"fault-{i}", f"seen {i}", "why", "fix it") for i in range(count)]


def test_the_family_is_complete() -> None:
    children = {name for name, v in vars(errors).items() if isinstance(v, type) and issubclass(v, TunekitError)}
    assert children == {"TunekitError", *FAMILY}


@pytest.mark.parametrize("name", FAMILY)
def test_every_child_is_also_an_error_of_the_standard_library(name: str) -> None:
    kind = getattr(errors, name)
    with pytest.raises(FAMILY[name], match="seen 0") as caught:
        raise kind(*findings(1))
    assert isinstance(caught.value, TunekitError)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 12])
@pytest.mark.parametrize("name", FAMILY)
def test_no_finding_is_lost_in_a_pickle_however_many_there_are(name: str, count: int) -> None:
    made = getattr(errors, name)(*findings(count))
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is type(made)
    assert again.findings == made.findings == made.args
    assert again.codes == tuple(f"fault-{i}" for i in range(count))
    assert str(again) == str(made)


def test_one_fault_is_one_line_and_several_are_a_list() -> None:
    assert str(InvalidError(*findings(1))) == "[fault-0] seen 0: why. Fix it."
    assert str(InvalidError(*findings(2))).splitlines() == [
        "2 problems:",
        "  [fault-0] seen 0: why. Fix it.",
        "  [fault-1] seen 1: why. Fix it.",
    ]


def test_an_error_without_a_finding_cannot_be_made() -> None:
    with pytest.raises(AssertionError):
        InvalidError()


def test_only_findings_of_severity_error_raise() -> None:
    raise_all([warning("odd", "something odd"), note("fyi", "something else")])
    with pytest.raises(InvalidError) as caught:
        raise_all([warning("odd", "something odd"), *findings(2)])
    assert caught.value.codes == ("fault-0", "fault-1")
