"""The public surface is frozen: a change of it is a change of the golden file, seen in review and told in the changelog."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import tunekit
from tunekit.fields import hints

GOLDEN = Path(__file__).parent / "golden" / "public_names.txt"


def surface() -> list[str]:
    """Every public name; the parameters of functions; the fields of what is written to files."""
    lines = []
    for name in sorted(tunekit.__all__):
        value = getattr(tunekit, name)
        if inspect.isfunction(value):
            lines.append(f"{name}({', '.join(inspect.signature(value).parameters)})")
        else:
            lines.append(name)
    for cls in (tunekit.Plan, tunekit.DataSpec, tunekit.Finding, tunekit.Hardware):
        lines += [f"{cls.__name__}.{field}" for field in hints(cls)]
    return lines


def test_the_public_names_are_those_of_the_golden_file() -> None:
    assert surface() == GOLDEN.read_text("utf-8").splitlines(), (
        f"if this was meant, write it into {GOLDEN} and CHANGELOG.md"
    )


def examples(value: object) -> str:
    return inspect.getdoc(value) or ""


OBJECTS = [n for n in tunekit.__all__ if n not in ("__version__", "methods", "objectives", "callbacks")]


@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_name_is_documented_with_an_example(name: str) -> None:
    doc = examples(getattr(tunekit, name))
    assert doc.splitlines()[0].endswith((".", "?", ":")), f"{name} begins with one sentence"
    assert ">>> " in doc, f"{name} has no example"


def test_every_public_name_is_told_to_type_checkers() -> None:
    source = Path(tunekit.__file__).read_text("utf-8").split("if TYPE_CHECKING:")[1]
    assert [n for n in tunekit.__all__ if n != "__version__" and n not in source] == []
