"""Run a Stillhouse command in child processes that end with this process, and raise its errors here.

    run_command(recipe, work / "launch", [sys.executable, "-m", "stillhouse", "distill", RECIPE], log, progress, what="...")

The command reads the resolved recipe from a file, reports progress as lines of JSON (events.py) and its error in another
file (ranks.py). All of its processes end with the process that called `run_command` (supervised.py). Stillhouse's own
processes do so even in sessions of their own: each ends when its standard input is closed (ranks.py).
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stillhouse.errors import StillhouseError, TrainingError, error_from
from stillhouse.processes import ranks
from stillhouse.processes.events import progress_event
from stillhouse.processes.supervised import SupervisedProcess
from stillhouse.progress import Progress
from stillhouse.recipe.recipe import Recipe
from stillhouse.storage.durable import write_atomically

RECIPE = "{recipe}"  # placeholder in a command: the recipe's file
LogLine = Callable[[str], None]


def log_to_standard_error(line: str) -> None:
    """Write a line to standard error, above the progress bars of a terminal."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def run_command(
    recipe: Recipe,
    folder: Path,
    command: Sequence[str],
    log: LogLine,
    progress: Progress,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    on_start: Callable[[SupervisedProcess], None] | None = None,
) -> None:
    """Run a command until it ends.

    Args:
        recipe: the resolved recipe, which is written to a file for the command.
        folder: folder of that file and of the command's error.
        command: the command's words; RECIPE is replaced by the path of the file.
        log: called with every line of the command's output that is not progress.
        progress: called with the command's progress.
        what: name of the command in the error if it fails without reporting one.
        environment: further environment variables.
        on_start: called with the process, which it may end.

    Raises:
        StillhouseError: the error that the command reported.
        TrainingError: the command failed without reporting an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks.failure_file(folder).unlink(missing_ok=True)  # of an earlier run
    file = folder / "recipe.yaml"
    write_atomically(file, recipe.as_yaml().encode())
    arguments = [str(file) if one == RECIPE else one for one in command]
    variables = {**(environment or {}), ranks.LAUNCH: str(folder), "PYTHONUNBUFFERED": "1"}
    failed = False
    with SupervisedProcess(arguments, variables) as process:
        if on_start is not None:
            on_start(process)
        for line in process.lines():
            event = progress_event(line)
            if event is not None:
                event.pass_to(progress)
                continue
            failed = failed or line == ranks.FAILED
            if line and not failed:  # the error is raised here; the launcher's long report of it is dropped
                log(line)
        status = process.wait()
    if status != 0:
        raise _failure(folder, process, what)


def _failure(folder: Path, process: SupervisedProcess, what: str) -> StillhouseError:
    """Return the error that the command reported, or one with the end of its log."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        fields = json.loads(ranks.failure_file(folder).read_text(encoding="utf-8"))
        if (error := error_from(fields)) is not None:
            return error
    return TrainingError(
        f"{what} {process.ending}. Read its last lines for the cause; a new run resumes from the last checkpoint:\n"
        + "\n".join(process.tail)
    )
