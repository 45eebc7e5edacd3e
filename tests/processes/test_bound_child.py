"""A command that ends with the process that started it, and takes all that it started along."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.process_tree import members

CHILD = [sys.executable, "-m", "stillhouse.processes.bound_child"]
STUBBORN = "trap '' TERM; sleep 300 & sleep 300 & echo up; wait"


def test_it_ends_as_the_command_ends() -> None:
    done = subprocess.run([*CHILD, "sh", "-c", "exit 7"], start_new_session=True, timeout=60, check=False)
    assert done.returncode == 7


def test_all_ends_with_the_parent_however_stubborn() -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", script, *CHILD, "sh", "-c", STUBBORN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert len(members(group)) == 4  # this program, the shell, and two that it started
        parent.kill()
    until = time.monotonic() + 30
    while members(group) and time.monotonic() < until:
        time.sleep(0.1)
    assert members(group) == []


def test_it_refuses_to_end_a_group_that_is_not_its_own() -> None:
    done = subprocess.run([*CHILD, "true"], capture_output=True, text=True, check=False, process_group=None)
    assert done.returncode == 1
    assert "start_new_session" in done.stderr
