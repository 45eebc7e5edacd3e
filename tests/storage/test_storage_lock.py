"""One writer a dataset, on this machine and in a store: who holds it is told, and who has died holds nothing."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.errors import DatasetBusy, StorageFailed
from stillhouse.storage import lock, lock_holder
from stillhouse.storage.durable import write_atomically, write_lock
from stillhouse.storage.location import Location, RemotePath, location
from stillhouse.storage.lock import StoreLock
from stillhouse.storage.lock_holder import holder_from, this_process
from tests.s3_server import Window

_HOLD = (
    "import sys, time\n"
    "from stillhouse.storage.durable import write_lock\n"
    "from stillhouse.storage.location import location\n"
    "with write_lock(location(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@contextmanager
def another_process(folder: Location, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds a folder until it is killed."""
    command = [sys.executable, "-c", _HOLD, str(folder), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return tmp_path / "words"
    return location(request.getfixturevalue("s3_root")) / "words"


def test_the_second_is_told_who_holds_it(folder: Location) -> None:
    with another_process(folder, "--set", "teacher.options.token=hidden") as process:
        with pytest.raises(DatasetBusy) as told, write_lock(folder):
            pass
        assert f"{folder} is being written by another run (process {process.pid} on {socket.gethostname()}" in str(
            told.value
        )
        assert "since 20" in str(told.value)
        assert "teacher.options.token=…" in str(told.value)
        assert "hidden" not in str(told.value)


def test_what_a_dead_process_held_is_taken_over_at_once(folder: Location) -> None:
    with another_process(folder) as process:
        process.kill()
        process.wait()
        with write_lock(folder):
            write_atomically(folder / "v001" / "recipe.yaml", b"name: words")
    with write_lock(folder):  # and is free again afterwards
        pass


def test_one_of_many_gets_it(s3_root: str) -> None:
    for place in range(4):
        assert len(winners(location(s3_root) / f"words-{place}")) == 1


def test_a_stale_lock_of_another_machine_is_taken_by_one_of_many(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = location(s3_root) / "words"
    left_by_another_machine(folder)
    with pytest.raises(DatasetBusy, match=r"process 7 on far-away.*60 seconds after"), write_lock(folder):
        pass
    monkeypatch.setattr(lock, "STALE_AFTER", 5.0)  # the winner's must not be stale to those whom a busy machine delays
    time.sleep(6.1)  # the store's clock shows whole seconds
    assert len(winners(folder)) == 1


def winners(folder: Location, contenders: int = 6) -> list[StoreLock]:
    """Which of some that try at the same moment get the lock; it is then let go."""
    assert isinstance(folder, RemotePath)
    locks = [StoreLock(folder) for _ in range(contenders)]
    ready = threading.Barrier(contenders)
    won: list[StoreLock] = []

    def take(one: StoreLock) -> None:
        ready.wait()
        try:
            one.acquire()
        except DatasetBusy:
            return
        won.append(one)

    threads = [threading.Thread(target=take, args=(one,)) for one in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in won:
        one.release()
    return won


def left_by_another_machine(folder: Location) -> None:
    left = replace(this_process(), host="far-away", machine="another boot", process=7, id="left")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillhouse.storage.location.write_guards", {})  # which that machine's process has none of
        write_atomically(folder / lock.FILE_NAME, left.as_bytes())


def test_a_lock_is_renewed_while_its_writer_lives(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_EVERY", 0.1)
    folder = location(s3_root) / "words"
    with write_lock(folder):
        deadline = time.monotonic() + 60  # of a busy machine; ten renewals a second are wanted
        found = None
        while (found is None or found.beat < 2) and time.monotonic() < deadline:
            time.sleep(0.1)
            found = holder_from((folder / lock.FILE_NAME).read_bytes())
        assert found is not None and found.beat >= 2
    assert not (folder / lock.FILE_NAME).exists()


@pytest.mark.parametrize("how", ["taken over", "removed"])
def test_a_writer_that_lost_its_lock_writes_no_manifest(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As one that was suspended for an hour: another has gone on meanwhile."""
    folder = location(s3_root) / "words"
    with write_lock(folder):
        write_atomically(folder / "v001" / "recipe.yaml", b"name: words")
        monkeypatch.setattr(lock, "_FRESH_FOR", 0.0)
        if how == "taken over":
            left_by_another_machine(folder)
            reason = "process 7 on far-away.* holds it"
        else:
            _remove(folder / lock.FILE_NAME)
            reason = "it was removed"
        for _ in range(2):
            with pytest.raises(DatasetBusy, match=f"this run no longer holds the lock of .*{reason}"):
                write_atomically(folder / "v001" / "manifest.json", b"{}")
    assert not (folder / "v001" / "manifest.json").exists()
    assert (folder / lock.FILE_NAME).exists() is (how == "taken over")  # what is another's is left to it


def _remove(path: Location) -> None:
    assert isinstance(path, RemotePath)
    from stillhouse.storage.service import call_store

    call_store(path.url, lambda fs, own: fs.rm_file(own))


def test_a_renewal_whose_answer_was_lost_loses_no_lock(
    s3: Window, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_FRESH_FOR", 0.0)
    folder = location(s3_root) / "words"
    with write_lock(folder):
        s3.forget = 1  # the next PUT is done, and its answer does not come
        write_atomically(folder / "v001" / "recipe.yaml", b"name: words")
        assert s3.forget == 0
        write_atomically(folder / "v001" / "manifest.json", b"{}")
    assert (folder / "v001" / "manifest.json").exists()


def test_a_store_without_conditional_writes_still_has_one_writer(
    s3: Window, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_FRESH_FOR", 0.0)
    s3.answer = lambda request: 501 if {"If-None-Match", "If-Match"} & set(request.headers) else None
    folder = location(s3_root) / "words"
    assert isinstance(folder, RemotePath)
    assert len(winners(folder)) == 1
    with write_lock(folder):
        with pytest.raises(DatasetBusy, match="is being written by another run"):
            StoreLock(folder).acquire()
        write_atomically(folder / "v001" / "recipe.yaml", b"name: words")
        left_by_another_machine(folder)
    assert (folder / lock.FILE_NAME).exists()


def test_a_lock_that_is_none_of_ours_is_respected_until_it_is_old(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = location(s3_root) / "words"
    write_atomically(folder / lock.FILE_NAME, b"from a later release")
    with pytest.raises(DatasetBusy, match="unknown"), write_lock(folder):
        pass
    monkeypatch.setattr(lock, "STALE_AFTER", 0.5)
    time.sleep(2.1)
    with write_lock(folder):
        pass


def test_only_a_process_of_this_machine_is_known_to_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    this = this_process()
    assert not this.has_ended()
    assert replace(this, started="1").has_ended()  # the number was given to another process
    assert replace(this, process=2**22 + 1).has_ended()
    assert not replace(this, process=2**22 + 1, machine="another").has_ended()
    monkeypatch.setattr(lock_holder, "_machine_id", lambda: "")  # a system without these files
    assert not replace(this_process(), process=2**22 + 1).has_ended()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["/venv/bin/stillhouse", "label", "my recipe.yaml"], "stillhouse label 'my recipe.yaml'"),
        (["stillhouse", "label", "--set", "a.key=hidden"], "stillhouse label --set a.key=…"),
        (["stillhouse", "label", "--set", "a={b: hidden,\nc: hidden}"], "stillhouse label --set a=…"),
        (["stillhouse", "show", "sftp://me:hidden@host/x"], "stillhouse show sftp://…@host/x"),
    ],
)
def test_a_command_line_is_shown_without_its_values(arguments: list[str], shown: str) -> None:
    assert lock_holder._command(arguments) == shown


def test_what_a_lock_says_can_be_read_again() -> None:
    this = this_process()
    assert holder_from(this.as_bytes()) == this
    for other in (b"", b"4711", b"{}", json.dumps({"host": "x"}).encode(), b"\xff"):
        assert holder_from(other) is None
    assert str(os.getpid()) in str(this)


def test_a_store_that_is_away_is_no_lost_lock(s3: Window, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_EVERY", 0.1)
    monkeypatch.setattr(lock, "_FRESH_FOR", 0.0)
    monkeypatch.setattr("stillhouse.storage.service._RETRY_SECONDS", 0.5)
    folder = location(s3_root) / "words"
    with write_lock(folder):
        s3.answer = lambda _: 503
        time.sleep(0.5)  # renewals fail
        with pytest.raises(StorageFailed, match="cannot be reached"):
            write_atomically(folder / "v001" / "recipe.yaml", b"name: words")
        s3.answer = lambda _: None
        write_atomically(folder / "v001" / "recipe.yaml", b"name: words")
