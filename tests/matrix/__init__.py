"""The executed matrix: every method, architecture and task; its cells, how one is tried, and the page of the results."""
