"""How long work tells how far it is: one function, handed in by whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable


class Progress(Protocol):
    """Called with what is being done, how much of it is done, and how much there is."""

    def __call__(self, activity: str, done: int, total: int) -> None: ...


@runtime_checkable
class TellsMore(Protocol):
    """Progress that can say more of an activity than how much of it is done; it asks for the words when it shows them."""

    def tell_more(self, activity: str, words: Callable[[], Sequence[str]]) -> None: ...


def silent(activity: str, done: int, total: int) -> None:
    """Show nothing."""
