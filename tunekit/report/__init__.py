"""Self-contained HTML and JSON reports."""

from __future__ import annotations

from tunekit.report.write import write_advice_report, write_comparison, write_report

__all__ = ["write_advice_report", "write_comparison", "write_report"]
