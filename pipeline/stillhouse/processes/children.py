"""Run a Stillhouse command in child processes that end with this process, and raise its errors here.

    run_command(recipe, work / "launch", [sys.executable, "-m", "stillhouse", "distill", RECIPE], log, progress, what="...")

The command reads the resolved recipe from a file, reports progress as lines of JSON (events.py) and its error in another
file (ranks.py). All of its processes end with the process that called `run_command`:

    stopped, or an error    SIGTERM for the command and its children, SIGKILL some seconds later (bound_child.py)
    kill -9                 the same, by the kernel's parent-death signal on Linux; and every Stillhouse process ends when
                            its standard input, a pipe that this process holds open, is closed (ranks.py)
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import StillhouseError, TrainingError, error_from
from stillhouse.processes import ranks
from stillhouse.processes.environment import child_environment
from stillhouse.processes.events import progress_event
from stillhouse.progress import Progress
from stillhouse.recipe.recipe import Recipe
from stillhouse.storage.durable import write_atomically

RECIPE = "{recipe}"  # placeholder in a command: the recipe's file
LogLine = Callable[[str], None]

_GRACE_SECONDS = 15.0  # for the group to end; bound_child.py kills it earlier
_LOG_TAIL = 20  # lines of the log in an error's message


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
    on_start: Callable[[subprocess.Popen[bytes]], None] | None = None,
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
    tail: deque[str] = deque(maxlen=_LOG_TAIL)
    failed = False
    with running(arguments, variables) as child:
        if on_start is not None:
            on_start(child.process)
        for line in child.lines():
            event = progress_event(line)
            if event is not None:
                event.pass_to(progress)
                continue
            tail.append(line)
            failed = failed or line == ranks.FAILED
            if line and not failed:  # the error is raised here; the launcher's long report of it is dropped
                log(line)
        status = child.process.wait()
    if status != 0:
        raise _failure(folder, status, tail, what)


def _failure(folder: Path, status: int, tail: Sequence[str], what: str) -> StillhouseError:
    """Return the error that the command reported, or one with the end of its log."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        fields = json.loads(ranks.failure_file(folder).read_text(encoding="utf-8"))
        if (error := error_from(fields)) is not None:
            return error
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return TrainingError(
        f"{what} {ended}. Read its last lines for the cause; a new run resumes from the last checkpoint:\n"
        + "\n".join(tail)
    )


@dataclass(frozen=True)
class Running:
    """A running command whose output is read; it ends with the block that started it."""

    process: subprocess.Popen[bytes]
    output: queue.SimpleQueue[str | None]  # lines; None: the end

    def lines(self) -> Iterator[str]:
        """Yield each line of output; of a line that was overwritten (a progress bar), its last state."""
        while (line := self.output.get()) is not None:
            yield line.rstrip().rpartition("\r")[2]


@contextlib.contextmanager
def running(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[Running]:
    """Run a command with these environment variables; when the block ends, all of its processes are ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stillhouse.processes.bound_child", *command],
        env=child_environment(variables),
        stdin=subprocess.PIPE,  # nothing is written: it is closed when this process ends
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    read: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process, read), daemon=True)
    watcher = threading.Thread(target=_watch, args=(process, reader, read), daemon=True)
    reader.start()
    watcher.start()
    try:
        yield Running(process, read)
    finally:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        watcher.join()


def _read(process: subprocess.Popen[bytes], read: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as log:
        for line in log:
            read.put(line.decode("utf-8", "replace"))


def _watch(process: subprocess.Popen[bytes], reader: threading.Thread, read: queue.SimpleQueue[str | None]) -> None:
    """When the launcher has ended, end the processes that it left behind, then mark the end of the output."""
    assert process.stdin is not None
    process.wait()
    process.stdin.close()
    reader.join(_GRACE_SECONDS)  # a service that an integration started may keep the pipe open
    read.put(None)
