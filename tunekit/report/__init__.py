"""Self-contained HTML and JSON reports."""

from __future__ import annotations

from tunekit.report.write import write_report

__all__ = ["write_report"]
