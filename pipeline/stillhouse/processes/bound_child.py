"""Run a command that ends, with its children, when the process that started it ends, even by kill -9 (on Linux).

    subprocess.Popen([sys.executable, "-m", "stillhouse.processes.bound_child", *command], start_new_session=True)

This process leads the command's process group. The kernel signals it when its parent dies; it then sends SIGTERM to the
group, and SIGKILL some seconds later: vLLM's workers outlive a server that is killed while they compile.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 8.0
_POLL_SECONDS = 0.1


def main() -> None:
    """Run the command line's arguments as a command, and exit with its status."""
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
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
