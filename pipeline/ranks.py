"""Several processes that train one student together, as `torchrun` and `accelerate launch` start them.

    torchrun --nproc_per_node 2 -m pipeline distill RECIPE

Every process reads the same recipe and dataset and takes its share of each step's rows; the first one, of rank 0, writes
what there is to write and tells how far it is. Until torch has joined them, all that is known is what the launcher says in
the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UsageError


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many train together; 1 where nothing was launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes and tells."""
    return rank() == 0


def one_process(command: str) -> None:
    """Refuse to run a command in several processes at once.

    Raises:
        UsageError: this is one of several.
    """
    if processes() > 1:
        raise UsageError(
            f"`stillhouse {command}` was started in {processes()} processes, and runs in one: start it without torchrun or "
            "accelerate. `torchrun --nproc_per_node 2 -m pipeline distill RECIPE` trains in several"
        )


@contextmanager
def first_process_first() -> Iterator[None]:
    """The block is run by the first process, and then by all others at once: they find what it wrote."""
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def wait_for_all() -> None:
    """Go on when every process has come this far."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def leave() -> None:
    """The end of working together; without it torch complains when the process ends."""
    if processes() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
