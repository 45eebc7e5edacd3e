"""Free ports that stay free until a server listens on them.

They are below those that the system gives to outgoing connections (32768 and up on Linux), and each process of a parallel
test run has a range of its own: nothing else takes one between the search and the server's start.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Iterator

_FIRST, _RANGE = 12_000, 1_000  # ports a process


def _candidates() -> Iterator[int]:
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
    first = _FIRST + worker % 20 * _RANGE
    start = os.getpid() % _RANGE  # two runs of the tests at once begin at different ones
    return itertools.cycle(first + (start + place) % _RANGE for place in range(_RANGE))


_ports = _candidates()


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens; no two calls of a process return the same one soon."""
    found: list[int] = []
    while len(found) < count:
        port = next(_ports)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
