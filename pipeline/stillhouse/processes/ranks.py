"""Distributed training: several processes that train one student, as `torchrun` and `accelerate launch` start them.

    torchrun --nproc_per_node 2 -m stillhouse distill RECIPE

`student.launch` of a recipe starts them too (stages/launch.py).

Every process reads the same recipe and dataset and takes its share of each step's rows; the process of rank 0 writes the
files and reports progress. Before torch initialises the process group, rank and world size come from the environment.
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

FAILED = '{"stillhouse": "failed"}'  # a line of output; the lines after it are the launcher's report of the failure
LAUNCH = "STILLHOUSE_LAUNCH"  # environment variable of launched processes: the folder for their error


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Return the number of processes that train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process of rank 0, which writes files and reports."""
    return rank() == 0


def launched_by_recipe() -> bool:
    """Whether this process was started by `student.launch`."""
    return LAUNCH in os.environ


def is_launched_for(folder: Path) -> bool:
    """Whether a Stillhouse process that holds this folder's lock launched this one to train in it."""
    return launched_by_recipe() and folder.resolve() in Path(os.environ[LAUNCH]).resolve().parents


def is_launched() -> bool:
    """Whether a launcher started this process, by a recipe or by hand; it then launches no others."""
    return launched_by_recipe() or processes() > 1


def end_with_launcher() -> None:
    """In a process that a recipe launched: end at once when the launching process ends, even by kill -9.

    Nothing is written to standard input, which all of them share; it reaches its end when the launching process ends.
    """
    if launched_by_recipe():
        threading.Thread(target=_exit_at_end_of_input, daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # checkpoints are atomic, so nothing needs cleaning up


def failure_file(folder: Path) -> Path:
    """Return the file with the error of a launched command, which the launcher's exit status does not carry."""
    return folder / "failure.json"


def write_failure(error: StillhouseError) -> None:
    """Report an error to the process that launched this one; the first report counts."""
    if not launched_by_recipe():
        return
    with suppress(OSError), failure_file(Path(os.environ[LAUNCH])).open("x", encoding="utf-8") as file:
        json.dump(error.as_dict(), file)
    sys.stdout.write(f"{FAILED}\n")
    sys.stdout.flush()


def require_one_process(command: str) -> None:
    """Refuse to run a command in several processes.

    Raises:
        UsageError: a launcher started several processes.
    """
    if processes() > 1:
        raise UsageError(
            f"`stillhouse {command}` was started in {processes()} processes, and runs only in one",
            fix="start it without torchrun or accelerate; to train in several, run `torchrun --nproc_per_node 2 -m "
            "stillhouse distill RECIPE`",
        )


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the block in the first process, then in all others at once, which find the files that it wrote."""
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def wait_for_all() -> None:
    """Wait until every process has called this."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def end_distributed() -> None:
    """Destroy the process group; without this, torch warns when the process ends."""
    if processes() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
