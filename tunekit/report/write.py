"""The door to the reports: a record and advice become two files."""

from __future__ import annotations

from collections.abc import Mapping
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


def html(record: Mapping[str, Any], advice: Mapping[str, Any] | None) -> str:
    """The page of `write_report` as text; everything that comes from data is escaped."""
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise MissingPackageError(
            error("report-packages", f"package {e.name}", "reports need it", "run `pip install 'tunekit-hf[report]'`")
        ) from None
    from tunekit.report.view import view

    files = resources.files("tunekit.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["ticks"] = _ticks
    template = environment.from_string((files / "report.html").read_text("utf-8"))
    return template.render(**view(record, advice), css=(files / "report.css").read_text("utf-8"))


def _ticks(text: str) -> Any:
    """Escaped text with what stands between backticks as code."""
    import re

    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
