"""Self-contained HTML and JSON reports."""
