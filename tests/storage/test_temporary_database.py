"""The temporary database takes little memory, can be used by several threads, and leaves no file behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

from stillhouse.storage.temporary_database import temporary_database
from tests.paths import PYTHONPATH

SCHEMA = "CREATE TABLE one (name TEXT PRIMARY KEY) WITHOUT ROWID; CREATE TABLE two (number INTEGER PRIMARY KEY)"
FILL = (
    "INSERT INTO one WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i FROM n"
)


def temporary_files(process: int) -> list[str]:
    """The files of SQLite that a process has open; a file without a name is listed as deleted."""
    links = [str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()]
    return [link for link in links if "etilqs" in link]


def test_what_does_not_fit_in_memory_is_found_on_disk() -> None:
    before = set(temporary_files(os.getpid()))
    with closing(temporary_database(SCHEMA, cache_kib=16)) as store:
        store.execute(FILL)
        (file,) = set(temporary_files(os.getpid())) - before
        assert file.endswith("(deleted)")
        assert store.execute("SELECT count(*), max(CAST(name AS INTEGER)) FROM one").fetchone() == (20000, 20000)
        assert store.execute("SELECT count(*) FROM two").fetchone() == (0,)
    assert set(temporary_files(os.getpid())) == before


def test_each_one_is_separate() -> None:
    with closing(temporary_database(SCHEMA)) as store, closing(temporary_database(SCHEMA)) as other:
        store.execute("INSERT INTO two VALUES (1)")
        assert other.execute("SELECT * FROM two").fetchall() == []


def test_another_thread_can_use_it() -> None:
    with closing(temporary_database(SCHEMA)) as store:
        thread = threading.Thread(target=lambda: store.execute("INSERT INTO two VALUES (7)"))
        thread.start()
        thread.join()
        assert store.execute("SELECT number FROM two").fetchall() == [(7,)]


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "from stillhouse.storage.temporary_database import temporary_database\n"
        f"store = temporary_database({SCHEMA!r}, cache_kib=16)\n"
        f"store.execute({FILL!r})\n"
        "print('filled', flush=True)\n"
        "input()\n"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "SQLITE_TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "filled\n"
        (file,) = temporary_files(process.pid)
        assert file.startswith(str(tmp_path)) and list(tmp_path.iterdir()) == []
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []
