"""Several processes that train one student together, as `torchrun` and `accelerate launch` start them.

    torchrun --nproc_per_node 2 -m stillhouse distill RECIPE

or as `student.launch` of the recipe has them started (launch.py).

Every process reads the same recipe and dataset and takes its share of each step's rows; the first one, of rank 0, writes
what there is to write and tells how far it is. Until torch has joined them, all that is known is what the launcher says in
the environment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stillhouse.errors import StillhouseError, UsageError

FAILED = '{"stillhouse": "failed"}'  # a line of output: what follows is how the launcher reports the failure
LAUNCH = "STILLHOUSE_LAUNCH"  # in the environment of what a recipe has launched: a folder for what goes wrong


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many train together; 1 where nothing was launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes and tells."""
    return rank() == 0


def by_recipe() -> bool:
    """Whether this process was started by `student.launch`."""
    return LAUNCH in os.environ


def works_in(folder: Path) -> bool:
    """Whether this process was started by another one of ours to train something in this folder, which that one holds."""
    return by_recipe() and folder.resolve() in Path(os.environ[LAUNCH]).resolve().parents


def is_launched() -> bool:
    """Whether this process was started to train, by a recipe or by hand, and so starts no others."""
    return by_recipe() or processes() > 1


def end_with_launcher() -> None:
    """Where a recipe launched this process: end at once when the one that launched it has, even by kill -9.

    Nothing is ever written to the standard input that all of them share. It ends when its other end is closed.
    """
    if by_recipe():
        threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # a checkpoint counts when it is whole, so there is nothing to put in order


def failure_file(folder: Path) -> Path:
    """Where a launched command says what was wrong: its launcher's exit status does not."""
    return folder / "failure.json"


def leave_failure(error: StillhouseError) -> None:
    """Tell whoever launched this process what was wrong; the first word counts."""
    if not by_recipe():
        return
    with suppress(OSError), failure_file(Path(os.environ[LAUNCH])).open("x", encoding="utf-8") as file:
        json.dump(error.as_dict(), file)
    sys.stdout.write(f"{FAILED}\n")
    sys.stdout.flush()


def require_one_process(command: str) -> None:
    """Refuse to run a command in several processes at once.

    Raises:
        UsageError: this is one of several.
    """
    if processes() > 1:
        raise UsageError(
            f"`stillhouse {command}` was started in {processes()} processes, and runs in one: start it without torchrun or "
            "accelerate. `torchrun --nproc_per_node 2 -m stillhouse distill RECIPE` trains in several"
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
