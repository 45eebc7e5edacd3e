"""Start a command whose processes all end with this one, read its output, watch for its exit, and stop it.

    with SupervisedProcess(["accelerate", "launch", ...], {"OMP_NUM_THREADS": "1"}) as process:
        for line in process.lines():
            ...
    process.ending      # "exited with status 1"
    process.tail        # the last lines of its output, for an error's message

The command leads a process group of its own, in a new session, so that a terminal's Ctrl-C reaches only this process. Its
processes end as follows:

    `stop`, or this process exits    SIGTERM for the group, SIGKILL some seconds later (bound_child.py)
    this process is killed (-9)      the same on Linux, by the kernel's parent-death signal; and the command's standard
                                     input, a pipe that this process holds open, is closed
    the command exits by itself      its standard input is closed, and what it left in the group gets SIGTERM, then SIGKILL
"""

from __future__ import annotations

import atexit
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from stillhouse.processes.environment import child_environment
from stillhouse.processes.events import progress_event

_GRACE_SECONDS = 15.0  # between SIGTERM and SIGKILL; longer than bound_child.py's, which usually kills the group
_GONE_SECONDS = 5.0  # that processes get to end after SIGKILL, which they must be scheduled for
_TAIL_LINES = 25


class SupervisedProcess:
    """A running command. As a context manager, it is stopped when the block ends.

    Start it from a thread that lives as long as the command may: on Linux, the parent-death signal is sent when the thread
    that started it ends.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str] | None = None, *, log_file: Path | None = None
    ) -> None:
        """Start the command.

        Args:
            command: the program and its arguments.
            variables: environment variables to add to this process's.
            log_file: file to append the output to; None: the caller reads the output with `lines`.
        """
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: the end
        log = None if log_file is None else log_file.open("ab", buffering=0)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stillhouse.processes.bound_child", *command],
            env=child_environment(variables),
            stdin=subprocess.PIPE,  # nothing is written: it is closed when this process ends
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        atexit.register(self.stop)
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._reader.start()
        self._watcher.start()

    def __enter__(self) -> SupervisedProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id, which is also that of the process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the command has not exited yet."""
        return self._process.poll() is None

    @property
    def ending(self) -> str:
        """How the command ended, as the predicate of a sentence."""
        status = self._process.returncode
        if status is None:
            return "is running"
        return f"exited with status {status}" if status >= 0 else f"was ended by signal {-status} ({_name(-status)})"

    @property
    def tail(self) -> list[str]:
        """The last lines of its output that are neither blank nor progress (events.py)."""
        return list(self._tail)

    def lines(self) -> Iterator[str]:
        """Yield each line of the output, until the command has ended; of a line that was overwritten, its last state."""
        while (line := self._lines.get()) is not None:
            yield line

    def wait(self) -> int:
        """Wait until the command has ended and its output has been read; return its exit status, as `subprocess` does."""
        self._watcher.join()
        return self._process.wait()

    def terminate(self) -> None:
        """Request the end of the command's processes, without waiting."""
        self._process.terminate()

    def stop(self) -> None:
        """End the command's processes and wait for it; does nothing if they have ended."""
        atexit.unregister(self.stop)
        self.terminate()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal_group(signal.SIGKILL)
        self._watcher.join()

    # ------------------------------------------------------------------------------------------------------ internals

    def _read(self, log: BinaryIO | None) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for raw in output:
                line = raw.decode("utf-8", "replace").rstrip().rpartition("\r")[2]  # of a progress bar, its last state
                if line and progress_event(line) is None:
                    self._tail.append(line)
                if log is None:
                    self._lines.put(line)
                else:
                    with suppress(OSError):  # a full disk: the output must be read all the same
                        log.write(raw)
        if log is not None:
            log.close()

    def _watch(self) -> None:
        """When the command has exited, end the processes that it left behind, then mark the end of the output."""
        assert self._process.stdin is not None
        self._process.wait()
        self._process.stdin.close()
        self._signal_group(signal.SIGTERM)
        self._reader.join(_GRACE_SECONDS)  # a service in a session of its own may keep the pipe open
        deadline = time.monotonic() + _GONE_SECONDS
        while (
            self._signal_group(signal.SIGKILL) and time.monotonic() < deadline
        ):  # until then it holds ports and memory
            time.sleep(0.02)
        self._lines.put(None)

    def _signal_group(self, number: signal.Signals) -> bool:
        """Signal every process of the group; return whether there is one."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS forbids signals to exited processes
            return False
        return True


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return "unnamed"
