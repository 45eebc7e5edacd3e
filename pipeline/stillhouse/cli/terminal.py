"""Output on a terminal: progress on standard error, results on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from stillhouse.inputs.plain_json import to_json
from stillhouse.processes.events import EventProgress
from stillhouse.processes.ranks import launched_by_recipe
from stillhouse.progress import PlainProgress, Progress

if TYPE_CHECKING:
    from stillhouse.labelling.estimate import Estimate
    from stillhouse.teachers.base import Finding

_BAR_WIDTH = 10
_BAR_SECONDS = 0.5  # between two updates of an activity's details

Details = Callable[[], Sequence[str]]  # an activity's details, besides its progress

# Paths, names, prompts and the words of errors are printed verbatim: `[/x]` and `:x:` have no meaning on these consoles.
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
output = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)


@contextmanager
def progress_display() -> Iterator[Progress]:
    """Yield progress bars on a terminal, plain lines elsewhere (a log file, a CI job), events in a launched process."""
    if launched_by_recipe():
        yield EventProgress()
    elif errors.is_terminal:
        whole = Column(no_wrap=True)  # on a narrow terminal only the details are cut
        columns = (
            TextColumn("{task.description}", markup=False, table_column=whole.copy()),
            BarColumn(bar_width=_BAR_WIDTH, table_column=whole.copy()),
            MofNCompleteColumn(table_column=whole.copy()),
            _MoreColumn(),
        )
        with Bars(*columns, console=errors) as bars:
            yield _BarProgress(bars)
    else:
        yield PlainProgress(lambda line: print(line, file=sys.stderr, flush=True))


class _MoreColumn(ProgressColumn):
    """An activity's details; the remaining time if it has none."""

    def __init__(self) -> None:
        super().__init__()
        self._remaining = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        more = task.fields.get("more")
        return (
            self._remaining.render(task)
            if more is None
            else Text(more, "progress.remaining", no_wrap=True, overflow="ellipsis")
        )


class _BarProgress:
    """One bar per activity."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._words: dict[str, Details] = {}
        self._last = 0.0

    def tell_more(self, activity: str, words: Details) -> None:
        self._words[activity] = words

    def __call__(self, activity: str, done: int, total: int) -> None:
        if activity not in self._tasks:
            self._tasks[activity] = self._bars.add_task(activity, total=total)
        self._bars.update(self._tasks[activity], completed=done, total=total)
        now = time.monotonic()
        if activity in self._words and (done == total or now - self._last >= _BAR_SECONDS):
            self._bars.update(self._tasks[activity], more=", ".join(self._words[activity]()))
            self._last = now


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without wrapping; the first column is left-aligned, the others right-aligned."""
    table = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    for place, header in enumerate(headers):
        table.add_column(header, justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    output.print(table)


def show_comparison(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print models as columns, each interval below its value; four models fit a terminal of 80 columns."""
    lines: list[list[str]] = []
    for place, header in enumerate(headers[1:], start=1):
        values, ranges = zip(*(row[place].partition(" [")[::2] for row in rows), strict=True)
        lines.append([header, *values])
        if any(ranges):
            lines.append(["", *(f"[{limits}" if limits else "" for limits in ranges)])
    show_table(["", *(row[0].replace(" ", "\n", 1) for row in rows)], lines)


def show_estimate(estimate: Estimate) -> None:
    """Print what labelling would send, cost and take."""
    show_pairs(estimate.lines())


def show_findings(findings: Sequence[Finding]) -> None:
    """Print the results of a teacher's checks, server by server."""
    for place, finding in enumerate(findings):
        if not place or finding.server != findings[place - 1].server:
            output.print(finding.server, markup=False)
        output.print(f"  {'ok   ' if finding.passed else 'WRONG'} {finding.check}: {finding.detail}", markup=False)


def show_pairs(lines: Sequence[Sequence[str]]) -> None:
    """Print names and values, one pair per line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for line in lines:
        table.add_row(*line)
    output.print(table)


def show_json(result: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(to_json(result) + "\n")
