"""Progress of launched processes: JSON objects, one per line, on standard output.

    {"stillhouse": "progress", "activity": "Training the white-box student", "done": 12, "total": 40, "more": []}

All other lines are log output of libraries. The error that ends a launched process is not among these lines, which several
processes write to one pipe: it has its own file (`ranks.write_failure`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.progress import Progress, TellsMore

_MARK = '{"stillhouse": "progress", '
_SECONDS = 0.5  # between two events of one activity


@dataclass(frozen=True)
class ProgressEvent:
    """One report of progress."""

    activity: str
    done: int
    total: int
    more: tuple[str, ...] = ()  # details of the activity

    def as_line(self) -> str:
        """Return the event as a line of JSON."""
        fields = {"activity": self.activity, "done": self.done, "total": self.total, "more": [*self.more]}
        return _MARK + json.dumps(fields)[1:]

    def pass_to(self, progress: Progress) -> None:
        """Report the event as progress of this process."""
        if self.more and isinstance(progress, TellsMore):
            progress.tell_more(self.activity, lambda: self.more)
        progress(self.activity, self.done, self.total)


def progress_event(line: str) -> ProgressEvent | None:
    """Return the event in a line of a launched process's output; None if the line is something else."""
    if not line.startswith(_MARK):
        return None
    try:
        fields = json.loads(line)
        return ProgressEvent(fields["activity"], int(fields["done"]), int(fields["total"]), tuple(fields["more"]))
    except (ValueError, KeyError, TypeError):  # two processes wrote into one line
        return None


class EventProgress:
    """Progress as events on standard output: the first of an activity, the last, and some in between."""

    def __init__(self) -> None:
        self._more: dict[str, Callable[[], Sequence[str]]] = {}
        self._activity = ""
        self._last = 0.0

    def tell_more(self, activity: str, words: Callable[[], Sequence[str]]) -> None:
        """Add these words to the events of an activity."""
        self._more[activity] = words

    def __call__(self, activity: str, done: int, total: int) -> None:
        now = time.monotonic()
        if activity == self._activity and done != total and now - self._last < _SECONDS:
            return
        self._activity, self._last = activity, now
        more = tuple(self._more[activity]()) if activity in self._more else ()
        sys.stdout.write(ProgressEvent(activity, done, total, more).as_line() + "\n")
        sys.stdout.flush()
