"""Run a command that ends when the process that started it ends, even by kill -9 (on Linux).

    python -m pipeline.serving.child COMMAND [ARGUMENT ...]

The kernel's parent-death signal is set and the command takes this process's place.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """See the module's docstring."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended meanwhile
            return
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
