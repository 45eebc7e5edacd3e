"""A command whose processes end with the one that started it, in whatever way either ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.processes import supervised
from stillhouse.processes.events import ProgressEvent
from stillhouse.processes.supervised import SupervisedProcess
from tests.process_tree import members


def shell(script: str, log_file: Path | None = None) -> SupervisedProcess:
    return SupervisedProcess(["sh", "-c", script], {"GREETING": "good day"}, log_file=log_file)


def test_its_output_is_read_line_by_line() -> None:
    with shell(r'echo $GREETING; printf "10%%\r20%%\n"; echo; echo out of memory >&2; exit 3') as process:
        assert list(process.lines()) == ["good day", "20%", "", "out of memory"]
        assert process.wait() == 3
    assert not process.running
    assert process.ending == "exited with status 3"
    assert process.tail == ["good day", "20%", "out of memory"]


def test_its_output_is_in_the_log_file_after_that_of_an_earlier_one(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    for word in ("first", "second"):
        with shell(f"echo {word}", log) as process:
            assert process.wait() == 0
    assert log.read_text() == "first\nsecond\n"
    assert process.tail == ["second"]


def test_the_tail_is_the_end_of_the_log_without_progress() -> None:
    event = ProgressEvent("Training", 1, 2).as_line()
    with shell(f"seq 100; echo '{event}'") as process:
        process.wait()
    assert process.tail == [str(number) for number in range(76, 101)]


def test_a_command_that_was_killed_is_reported_as_killed() -> None:
    with shell("kill -KILL $$") as process:
        assert process.wait() == -signal.SIGKILL
    assert process.ending == "was ended by signal 9 (SIGKILL)"


def test_it_stops_with_sigterm() -> None:
    script = "trap 'echo saved; exit' TERM; echo up; while :; do sleep 0.05; done"
    with shell(script) as process:
        lines = process.lines()
        assert next(lines) == "up"
        assert process.running and process.ending == "is running"
    assert list(lines)[-1] == "saved"
    assert members(process.pid) == []


def test_what_the_command_leaves_behind_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_GRACE_SECONDS", 2)
    script = "(trap 'echo told' TERM; echo up; while :; do sleep 0.05; done) & sleep 0.3"
    with shell(script) as process:
        first, *_, last = process.lines()
        assert (first, last) == ("up", "told")  # SIGTERM, which it survives
        assert process.wait() == 0
        assert members(process.pid) == []  # SIGKILL


def test_its_standard_input_ends_with_the_command_for_processes_in_other_sessions() -> None:
    waiting = "import sys; sys.stdin.read(); print('input ended')"
    started = f"subprocess.Popen([sys.executable, '-c', {waiting!r}], start_new_session=True)"
    with SupervisedProcess([sys.executable, "-c", f"import subprocess, sys; {started}"]) as process:
        assert list(process.lines()) == ["input ended"]


@pytest.mark.parametrize("ends", ["exits", "is killed"])
def test_it_ends_with_the_process_that_started_it(ends: str) -> None:
    script = (
        "import sys\n"
        "from stillhouse.processes.supervised import SupervisedProcess\n"
        "process = SupervisedProcess(['sleep', '300'])\n"
        "print(process.pid, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        group = int(parent.stdout.readline())
        while len(members(group)) < 2:  # bound_child.py and sleep
            time.sleep(0.02)
        if ends == "exits":
            parent.stdin.write("\n")
        else:
            os.kill(parent.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while members(group) and time.monotonic() < until:
        time.sleep(0.05)
    assert members(group) == []
