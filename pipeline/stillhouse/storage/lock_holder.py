"""The identity of the run that holds a write lock: shown to other runs, and used to check whether its process has ended.

It contains no secrets: of the command line, values in `key=value` and credentials in URLs are left out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
import uuid
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from stillhouse.records import utc_now


@dataclass(frozen=True)
class Holder:
    """The run that holds a lock."""

    host: str
    machine: str  # identifies this boot and PID namespace; empty if the system does not provide them
    process: int
    started: str  # start time of the process in kernel ticks: process ids are reused
    since: str  # ISO 8601, UTC
    command: str
    id: str  # random id of this hold
    beat: int = 0  # incremented at every renewal, so that no two contents are equal

    def renewed(self) -> Holder:
        """Return the same hold with the next beat."""
        return replace(self, beat=self.beat + 1)

    def as_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    def has_ended(self) -> bool:
        """Whether the process has certainly ended: it ran on this machine and no longer exists."""
        return bool(self.machine) and self.machine == _machine_id() and _start_time(self.process) != self.started

    @property
    def name(self) -> str:
        """A short name: process 4711 on box."""
        return f"process {self.process} on {self.host}"

    def __str__(self) -> str:
        return f"{self.name}, since {self.since}" + (f": {self.command}" if self.command else "")


def this_process() -> Holder:
    """Return a new hold of this process."""
    return Holder(
        host=socket.gethostname(),
        machine=_machine_id(),
        process=os.getpid(),
        started=_start_time(os.getpid()),
        since=utc_now(),
        command=_command(sys.argv),
        id=uuid.uuid4().hex,
    )


def holder_from(content: bytes) -> Holder | None:
    """Parse a lock's content; None if it is empty, incomplete or from another release."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _command(arguments: list[str]) -> str:
    """Return a command line without values: `stillhouse label recipe.yaml --set label.samples=…`."""
    words = [re.sub(r"=.*", "=…", word, flags=re.DOTALL) for word in arguments[1:]]
    words = [re.sub(r"//[^/]*@", "//…@", word) for word in words]
    return f"{Path(arguments[0]).name} {' '.join(map(_quote, words))}".strip() if arguments else ""


def _quote(word: str) -> str:
    return word if "…" in word else shlex.quote(word)


@cache
def _machine_id() -> str:
    """Return an id of this boot and PID namespace (a container has its own); empty if the system has none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_time(process: int) -> str:
    """Return the start time of a process in kernel ticks, or "" if there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
