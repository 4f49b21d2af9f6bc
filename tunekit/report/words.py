"""Figures as a report writes them."""

from __future__ import annotations

GIB = 2**30
MIB = 2**20


def size(num_bytes: float) -> str:
    """Bytes as people read them.

    Example:
        >>> size(3 * 2**30), size(5.4 * 2**20), size(300)
        ('3.00 GiB', '5.4 MiB', '300 B')
    """
    if num_bytes >= GIB / 10:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / MIB:.1f} MiB" if num_bytes >= MIB / 10 else f"{num_bytes:.0f} B"


def time(seconds: float) -> str:
    """Seconds as people read them.

    Example:
        >>> time(0.0421), time(42), time(600), time(10_000)
        ('42.1 ms', '42.0 s', '10.0 min', '2.8 h')
    """
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def number(value: object) -> str:
    """A plain value in a table.

    Example:
        >>> number(1234567), number(0.123456), number(1e-05), number(True), number(None)
        ('1,234,567', '0.1235', '1e-05', 'yes', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def off(predicted: float, measured: float) -> str:
    """How far a prediction lies from what was measured.

    Example:
        >>> off(110, 100), off(98, 100), off(100, 100)
        ('10 % too high', '2 % too low', 'as measured')
    """
    share = 100 * (predicted / measured - 1)
    if abs(share) < 0.5:
        return "as measured"
    return f"{abs(share):.0f} % too {'high' if share > 0 else 'low'}"
