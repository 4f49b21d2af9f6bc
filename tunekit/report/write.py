"""The door to the reports: a record and advice become two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tunekit.errors import MissingPackageError
from tunekit.files import write_json, write_text
from tunekit.finding import error

SCHEMA = 1


def write_report(record: Mapping[str, Any], advice: Mapping[str, Any] | None, folder: str | Path) -> tuple[Path, Path]:
    """Writes `report.html`, one file that loads nothing from elsewhere, and `report.json` with the same figures.

    Args:
        record: What `RunRecord.to_dict` gives, perhaps with `scores` and `samples`.
        advice: `Advice.to_dict()`, for the table of methods; None leaves it out.
        folder: Where to; made where it is missing.

    Returns:
        The paths of the page and of the data.

    Raises:
        MissingPackageError: `report-packages`.

    Example:
        >>> import tempfile
        >>> page, data = write_report({"kind": "tunekit-run", "status": "finished"}, None, tempfile.mkdtemp())
        >>> page.name, data.name
        ('report.html', 'report.json')
    """
    page = html(record, advice)
    data = {"kind": "tunekit-report", "schema": SCHEMA, "run": record, "advice": advice}
    folder = Path(folder)
    return write_text(folder / "report.html", page), write_json(folder / "report.json", data)


def write_advice_report(advice: Mapping[str, Any], path: str | Path) -> Path:
    """Writes advice as one page that loads nothing from elsewhere.

    Args:
        advice: `Advice.to_dict()`.
        path: The page's file.

    Raises:
        MissingPackageError: `report-packages`.

    Example:
        >>> import tempfile
        >>> write_advice_report({"kind": "tunekit-advice"}, tempfile.mkdtemp() + "/advice.html").name
        'advice.html'
    """
    _needs_packages()
    from tunekit.report.advice_page import advice_page_view

    return write_text(Path(path), _rendered("advice.html", advice_page_view(advice)))


def write_comparison(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], folder: str | Path
) -> tuple[Path, Path]:
    """Writes `comparison.html` and `comparison.json` of several runs.

    Args:
        records: What `RunRecord.to_dict` gives, one a run, two at least.
        names: What to call each.
        folder: Where to; made where it is missing.

    Raises:
        MissingPackageError: `report-packages`.

    Example:
        >>> import tempfile
        >>> run = {"kind": "tunekit-run", "status": "finished"}
        >>> write_comparison([run, run], ["first", "second"], tempfile.mkdtemp())[0].name
        'comparison.html'
    """
    _needs_packages()
    from tunekit.report.comparison import comparison_view

    data = {"kind": "tunekit-comparison", "schema": SCHEMA, "runs": dict(zip(names, records, strict=True))}
    folder = Path(folder)
    page = _rendered("comparison.html", comparison_view(records, names))
    return write_text(folder / "comparison.html", page), write_json(folder / "comparison.json", data)


def html(record: Mapping[str, Any], advice: Mapping[str, Any] | None) -> str:
    """The page of `write_report` as text; everything that comes from data is escaped."""
    _needs_packages()
    from tunekit.report.view import view

    return _rendered("report.html", view(record, advice))


def _needs_packages() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise MissingPackageError(
            error("report-packages", f"package {e.name}", "reports need it", "run `pip install 'tunekit-hf[report]'`")
        ) from None


def _rendered(page: str, values: Mapping[str, Any]) -> str:
    import jinja2

    files = resources.files("tunekit.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files / name).read_text("utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["ticks"] = _ticks
    return environment.get_template(page).render(**values, css=(files / "report.css").read_text("utf-8"))


def _ticks(text: str) -> Any:
    """Escaped text with what stands between backticks as code."""
    import re

    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
