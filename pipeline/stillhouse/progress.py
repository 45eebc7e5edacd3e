"""Show the progress of long work: the caller passes a function, which is called with an activity, the done and the total.

    await label(recipe, progress=PlainProgress(print))     # "Labelling: 120 of 576", every few seconds

`Bars` shows tqdm bars, in a notebook too; `silent`, the default, shows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

_PLAIN_SECONDS = 5.0  # between two plain lines of one activity


class Progress(Protocol):
    """Called with what is being done, how much of it is done, and how much there is."""

    def __call__(self, activity: str, done: int, total: int) -> None: ...


@runtime_checkable
class TellsMore(Protocol):
    """Progress that can say more of an activity than how much of it is done; it asks for the words when it shows them."""

    def tell_more(self, activity: str, words: Callable[[], Sequence[str]]) -> None: ...


def silent(activity: str, done: int, total: int) -> None:
    """Show nothing."""


class PlainProgress:
    """A line of text when an activity starts, when it ends, and every few seconds in between."""

    def __init__(self, write: Callable[[str], None], every: float = _PLAIN_SECONDS) -> None:
        self._write = write
        self._every = every
        self._activity = ""
        self._last = 0.0
        self._words: dict[str, Callable[[], Sequence[str]]] = {}

    def tell_more(self, activity: str, words: Callable[[], Sequence[str]]) -> None:
        """Append these words to the lines of an activity."""
        self._words[activity] = words

    def __call__(self, activity: str, done: int, total: int) -> None:
        now = time.monotonic()
        if activity != self._activity or done == total or now - self._last >= self._every:
            more = self._words[activity]() if activity in self._words else ()
            self._write(", ".join([f"{activity}: {done:,} of {total:,}", *more]))
            self._activity, self._last = activity, now


class Bars:
    """One tqdm bar per activity: widgets in a notebook, text elsewhere."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}
        self._more: dict[str, Callable[[], Sequence[str]]] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._bars.values():
            bar.close()

    def tell_more(self, activity: str, words: Callable[[], Sequence[str]]) -> None:
        self._more[activity] = words

    def __call__(self, activity: str, done: int, total: int) -> None:
        import warnings

        from tqdm import TqdmWarning

        if activity not in self._bars:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TqdmWarning)  # of a notebook without ipywidgets, where bars are text
                from tqdm.auto import tqdm

                self._bars[activity] = tqdm(desc=activity, total=total, dynamic_ncols=True)
        bar = self._bars[activity]
        bar.total = total
        bar.update(done - bar.n)
        if activity in self._more:
            bar.set_postfix_str(", ".join(self._more[activity]()), refresh=False)
