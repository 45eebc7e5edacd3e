"""Run a command that ends, with its children, when the process that started it ends, even by kill -9 (on Linux).

    subprocess.Popen([sys.executable, "-m", "stillhouse.processes.bound_child", *command], start_new_session=True)

This process leads the command's process group; `SupervisedProcess` (supervised.py) starts it so. The kernel signals it when
its parent dies; it then sends SIGTERM to the group, and SIGKILL some seconds later: vLLM's workers outlive a server that is
killed while they compile. If the command ends by itself, this process ends in the same way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 8.0
_POLL_SECONDS = 0.1


def main() -> None:
    """Run the command line's arguments as a command, and end as it does, by an exit status or a signal."""
    if os.getpgrp() != os.getpid():
        raise SystemExit(
            "stillhouse.processes.bound_child ends its whole process group: start it with start_new_session=True"
        )
    stop_requested: list[float] = []  # time of the request, if any

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        stop_requested.append(time.monotonic())

    signal.signal(signal.SIGTERM, end)
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended meanwhile
            return
    process = subprocess.Popen(sys.argv[1:])
    while process.poll() is None and not (stop_requested and time.monotonic() > stop_requested[0] + _GRACE_SECONDS):
        time.sleep(_POLL_SECONDS)
    if stop_requested:
        os.killpg(0, signal.SIGKILL)  # remaining processes of the group, this one included
    if process.returncode < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has dumped its own core
        with contextlib.suppress(OSError):  # SIGKILL has no handler to restore
            signal.signal(-process.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -process.returncode)
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
