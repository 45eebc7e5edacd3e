"""What runs on this machine, read from /proc: a container may have no `ps`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One that has not ended."""

    pid: int
    parent: int
    group: int
    command: str


def processes() -> list[Process]:
    """All that run now; one that ends meanwhile is left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            state, parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append(Process(int(folder.name), int(parent), int(group), command))
    return found


def members(group: int) -> list[Process]:
    """What runs in a process group."""
    return [process for process in processes() if process.group == group]
