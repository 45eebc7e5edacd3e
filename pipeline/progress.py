"""How long work tells how far it is: one function, handed in by whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, how much of it is done, and how much there is."""

    def __call__(self, activity: str, done: int, total: int) -> None: ...


def silent(activity: str, done: int, total: int) -> None:
    """Show nothing."""
