"""Format figures, times, sums of money and tables as text for people.

    >>> format_usd(0.0123), format_duration(7500), format_amount(12_345), count_in_words(63_713_088)
    ('$0.012', '2 h 5 min', '12.3 k', '63.7 million')

text.py quotes and compares texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath


def pluralize(count: int, noun: str) -> str:
    """Return a count with its noun: 1 row, 2 rows."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def count_in_words(number: int) -> str:
    """26912 -> 26,912; 63713088 -> 63.7 million."""
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{number:,}"


def format_number(value: float) -> str:
    """Format a value with few digits."""
    return (
        f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2g}" if value < 1 else f"{value:.1f}"
    )


def format_value(value: float) -> str:
    """Format a value with three significant digits, or two for large ones (1.2e+05)."""
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"


def format_amount(number: float, unit: str = "") -> str:
    """Format a number with three digits and a metric prefix: 950, 12.3 k, 4.56 MB."""
    steps = ["", "k", "M", "G", "T"]
    power = 0
    while number >= 999.5 and power < len(steps) - 1:
        number, power = number / 1000, power + 1
    text = f"{number:.0f}" if power == 0 else f"{number:.3g}"
    return f"{text} {steps[power]}{unit}".rstrip()


def megabytes_in_words(size: float) -> str:
    """Format megabytes with significant digits only."""
    return f"{size:,.0f}" if size >= 10 else f"{size:.2f}"


def format_usd(usd: float) -> str:
    """Format dollars with cents, or with more digits if the sum is small."""
    return f"${usd:,.2f}" if usd >= 0.1 or not usd else f"${usd:.2g}" if usd >= 1e-4 else "less than $0.0001"


def format_duration(seconds: float) -> str:
    """Format seconds for display: 40 s, 3 min, 2 h 5 min, 3 d 4 h."""
    if seconds < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def without_local_folders(path: str) -> str:
    """Return only the last part of a local path, so that a published card shows no folders of this machine."""
    return PurePath(path).name if path.startswith(("/", "~", "\\")) or path[1:2] == ":" else path


def escape_table_cell(text: object) -> str:
    """Return a text that is safe in a Markdown table cell: one line, with Markdown and HTML characters escaped."""
    line = " ".join(str(text).split())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the Markdown lines of a table; cells are escaped."""

    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in cells) + " |"
        )

    return [line(headers), "|" + " --- |" * len(headers), *(line(row) for row in rows)]
