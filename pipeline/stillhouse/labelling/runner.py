"""The interface of a runner, which has the parts of a job labelled by other processes; `runners/` opens them."""

from __future__ import annotations

from typing import Protocol


class Runner(Protocol):
    """Has recipes labelled by other processes: a work pool, a cluster."""

    async def label(self, recipe: str, name: str) -> None:
        """Have the recipe at this path or URL labelled, and return when it is done; `name` is for display.

        Raises:
            WorkerLost: the process that labelled it is gone.
            StillhouseError: the error that stopped the labelling.
        """
