"""What a person sees in a terminal: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from pipeline.progress import Progress

_PLAIN_SECONDS = 5.0  # between two plain lines of one activity

errors = Console(stderr=True, highlight=False, soft_wrap=True)
output = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Bars on a terminal, plain lines elsewhere (a log file, a CI job)."""
    if errors.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=errors) as bars:
            yield _BarProgress(bars)
    else:
        yield PlainProgress(lambda line: print(line, file=sys.stderr, flush=True))


class _BarProgress:
    """One bar an activity."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def __call__(self, activity: str, done: int, total: int) -> None:
        if activity not in self._tasks:
            self._tasks[activity] = self._bars.add_task(activity, total=total)
        self._bars.update(self._tasks[activity], completed=done, total=total)


class PlainProgress:
    """A line when an activity begins, when it ends, and every few seconds between; also what the flows log by."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self._activity = ""
        self._last = 0.0

    def __call__(self, activity: str, done: int, total: int) -> None:
        now = time.monotonic()
        if activity != self._activity or done == total or now - self._last >= _PLAIN_SECONDS:
            self._write(f"{activity}: {done:,} of {total:,}")
            self._activity, self._last = activity, now


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table that keeps its columns whole; the first column is left-aligned, figures to the right."""
    table = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    for place, header in enumerate(headers):
        table.add_column(header, justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    output.print(table)


def show_comparison(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Models as columns, each interval below its value: whole on a terminal of 80 columns."""
    lines: list[list[str]] = []
    for place, header in enumerate(headers[1:], start=1):
        values, ranges = zip(*(row[place].partition(" [")[::2] for row in rows), strict=True)
        lines.append([header, *values])
        if any(ranges):
            lines.append(["", *(f"[{limits}" if limits else "" for limits in ranges)])
    show_table(["", *(row[0] for row in rows)], [[escape(cell) for cell in line] for line in lines])


def show_json(result: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
