"""Who holds a dataset for writing: told to whoever comes second, and looked up where a process may have ended.

No secret is in it: of the command line only the words are kept, and of `key=value` the key.
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
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """One run that writes."""

    host: str
    machine: str  # names this very boot and process namespace; empty where the system does not tell
    process: int
    started: str  # of the process, in the system's own ticks: a number is given again to another
    since: str  # ISO 8601, UTC
    command: str
    id: str  # of this hold, random
    beat: int = 0  # grows with every renewal, so that no two contents are the same

    def renewed(self) -> Holder:
        """The same hold, a little later."""
        return replace(self, beat=self.beat + 1)

    def as_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    def has_ended(self) -> bool:
        """Whether it is certain that the process is gone: it was on this machine, and is not there now."""
        return bool(self.machine) and self.machine == _machine() and _started(self.process) != self.started

    @property
    def name(self) -> str:
        """In a few words: process 4711 on box."""
        return f"process {self.process} on {self.host}"

    def __str__(self) -> str:
        return f"{self.name}, since {self.since}" + (f": {self.command}" if self.command else "")


def this_process() -> Holder:
    """A new hold of this process."""
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        process=os.getpid(),
        started=_started(os.getpid()),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(sys.argv),
        id=uuid.uuid4().hex,
    )


def holder_from(content: bytes) -> Holder | None:
    """What a lock says; None where it is not there yet or of another release."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _command(arguments: list[str]) -> str:
    """A command line without values: `stillhouse label recipe.yaml --set label.samples=…`."""
    words = [re.sub(r"=.*", "=…", word, flags=re.DOTALL) for word in arguments[1:]]
    words = [re.sub(r"//[^/]*@", "//…@", word) for word in words]
    return f"{Path(arguments[0]).name} {' '.join(map(_quoted, words))}".strip() if arguments else ""


def _quoted(word: str) -> str:
    return word if "…" in word else shlex.quote(word)


@cache
def _machine() -> str:
    """Names this boot of this machine and the namespace that process numbers count in: a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process began, in ticks of the kernel; empty where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
