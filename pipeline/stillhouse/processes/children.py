"""A command of ours in processes of its own, which end with this one, and whose errors are raised here.

    follow(recipe, work / "launch", [sys.executable, "-m", "stillhouse", "distill", RECIPE], tell, what="the training")

The command gets the resolved recipe from a file, reports its progress as lines of JSON (events.py) and its error in another
file (ranks.py). All that it starts ends
with the process that called `follow`, however that ends:

    asked to stop, an error    SIGTERM for the command and what it started, SIGKILL some seconds later (serving/child.py)
    kill -9                    the same, by the kernel's word on Linux; and every process of ours waits for the end of its
                               standard input, whose other end is held here, and then ends at once (ranks.py)
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

RECIPE = "{recipe}"  # in a command: the file of the recipe
Tell = Callable[[str], None]

_GRACE_SECONDS = 15.0  # for the group to end; child.py kills it before
_LINES_KEPT = 20  # of the log, for an error's message


def to_standard_error(line: str) -> None:
    """A `Tell` for whoever gives none; it writes above the bars of a terminal."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def follow(
    recipe: Recipe,
    folder: Path,
    command: Sequence[str],
    tell: Tell,
    progress: Progress,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    on_start: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> None:
    """Run a command until it ends.

    Args:
        recipe: resolved; the command gets it as a file.
        folder: where that file goes, and where the command leaves what was wrong.
        command: RECIPE in it stands for the file.
        tell: called with every line of the log that is not progress.
        progress: called with the command's progress.
        what: what the command is, for the error when it ends without a word.
        environment: variables to set besides.
        on_start: gets the process, and may end it.

    Raises:
        StillhouseError: the very error that the command ended with.
        TrainingError: the command failed without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks.failure_file(folder).unlink(missing_ok=True)  # of an earlier run
    file = folder / "recipe.yaml"
    write_atomically(file, recipe.as_yaml().encode())
    arguments = [str(file) if one == RECIPE else one for one in command]
    variables = {**(environment or {}), ranks.LAUNCH: str(folder), "PYTHONUNBUFFERED": "1"}
    kept: deque[str] = deque(maxlen=_LINES_KEPT)
    failed = False
    with running(arguments, variables) as child:
        if on_start is not None:
            on_start(child.process)
        for line in child.lines():
            event = progress_event(line)
            if event is not None:
                event.pass_to(progress)
                continue
            kept.append(line)
            failed = failed or line == ranks.FAILED
            if line and not failed:  # the error is raised here, and the launcher reports it at length
                tell(line)
        status = child.process.wait()
    if status != 0:
        raise _failure(folder, status, kept, what)


def _failure(folder: Path, status: int, kept: Sequence[str], what: str) -> StillhouseError:
    """What the command itself said, or else the end of the log."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        said = json.loads(ranks.failure_file(folder).read_text(encoding="utf-8"))
        if (error := error_from(said)) is not None:
            return error
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return TrainingError(
        f"{what} {ended}. Its last lines say why; run again, and the training goes on from its last checkpoint:\n"
        + "\n".join(kept)
    )


@dataclass(frozen=True)
class Running:
    """A command whose log is read, and which ends with the block that it runs in."""

    process: subprocess.Popen[bytes]
    read: queue.SimpleQueue[str | None]  # None: the end

    def lines(self) -> Iterator[str]:
        """Each line when it comes; of one that was written over (a progress bar), what was last there."""
        while (line := self.read.get()) is not None:
            yield line.rstrip().rpartition("\r")[2]


@contextlib.contextmanager
def running(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[Running]:
    """Run a command, with these variables set, until it ends or the block does; either way nothing of it is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stillhouse.processes.bound_child", *command],
        env=child_environment(variables),
        stdin=subprocess.PIPE,  # nothing is ever written: its end is the end of this process
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
    """When the launcher has ended, whoever it left behind does too, and then the log is at its end."""
    assert process.stdin is not None
    process.wait()
    process.stdin.close()
    reader.join(_GRACE_SECONDS)  # a service that an integration leaves behind may keep the log open
    read.put(None)
