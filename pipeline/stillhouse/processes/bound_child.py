"""Run a command that ends, with all that it started, when the process that started it ends, even by kill -9 (on Linux).

    subprocess.Popen([sys.executable, "-m", "stillhouse.processes.bound_child", *command], start_new_session=True)

This process stays beside the command, at the head of a process group of their own. The kernel tells it of its parent's
death; it then asks the group to end, and kills what has not ended some seconds later: vLLM's workers outlive a server that
is killed while they compile.
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
    """See the module's docstring."""
    if os.getpgrp() != os.getpid():
        raise SystemExit(
            "stillhouse.processes.bound_child ends its whole process group: start it with start_new_session=True"
        )
    asked: list[float] = []  # to end: when

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        asked.append(time.monotonic())

    signal.signal(signal.SIGTERM, end)
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended meanwhile
            return
    process = subprocess.Popen(sys.argv[1:])
    while process.poll() is None and not (asked and time.monotonic() > asked[0] + _GRACE_SECONDS):
        time.sleep(_POLL_SECONDS)
    if asked:
        os.killpg(0, signal.SIGKILL)  # whoever is left, and this process
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
