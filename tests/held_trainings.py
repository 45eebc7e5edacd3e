"""Trainings in other processes that wait for the test: suspended at a checkpoint, so that none ends too early.

held = hold_at_first_checkpoint(students, lambda: command.poll() is None)
command.send_signal(signal.SIGTERM)
resume_when_told_to_end(held)
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.process_tree import Process, processes


def hold_at_first_checkpoint(students: Sequence[Path], running: Callable[[], bool]) -> list[int]:
    """Suspend each student's training once it has a whole checkpoint, so that none ends before the test goes on.

    Args:
        students: the folders of the students; the command of a student's training names a file in its folder.
        running: whether what started the trainings still runs.

    Returns:
        The suspended processes; all of them, unless what started them has ended.
    """
    waiting, held = list(students), list[int]()
    while waiting and running():
        for folder in list(waiting):
            if not list(folder.glob(".work-white-box-*/checkpoint-*/whole*")):
                continue
            held += [one.pid for one in processes() if f"{folder}/" in one.command and not _is_a_launcher(one)]
            waiting.remove(folder)
            for pid in held:
                os.kill(pid, signal.SIGSTOP)
        time.sleep(0.01)
    return held


def resume_when_told_to_end(held: list[int]) -> None:
    """Let each suspended process go on when a SIGTERM waits for it, and wait until all have ended."""
    while held := [pid for pid in held if any(one.pid == pid for one in processes())]:
        for pid in held:
            if _has_pending(pid, signal.SIGTERM):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)


def _is_a_launcher(process: Process) -> bool:
    """Whether a process only starts others and ends them: it must go on."""
    return any(module in process.command for module in ("stillhouse.processes.bound_child", "accelerate"))


def _has_pending(pid: int, number: signal.Signals) -> bool:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("ShdPnd:"):
                return bool(int(line.split()[1], 16) & 1 << (number - 1))
    return False
