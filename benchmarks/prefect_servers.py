"""Prefect servers and workers for benchmarks, each server with its own database, and the environment to reach them.

with sqlite_server(folder) as server, workers(folder, 2):
    run([*STILLHOUSE, "label", recipe], log)
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared import PYTHON, ROOT
from tests.flows.conftest import ServerProcess
from tests.ports import free_ports
from tests.postgres import NAME, USER, Postgres


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for all processes started inside the `with`; restore the previous values after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@dataclass(frozen=True)
class Server:
    """A running Prefect server, which processes started inside the `with` use. `home` is its PREFECT_HOME."""

    home: Path

    @property
    def database_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.home.glob("prefect.db*"))


@contextmanager
def sqlite_server(folder: Path) -> Iterator[Server]:
    """Run `prefect server start` with SQLite, as in the README."""
    with _server(folder / "sqlite", {}) as server:
        yield server


@contextmanager
def postgres_server(folder: Path) -> Iterator[Server]:
    """Run `prefect server start` with its own PostgreSQL."""
    with ExitStack() as running:
        place = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="postgres-", dir="/var/tmp")))  # on disk
        place.chmod(0o755)  # PostgreSQL may run as another user, without access to this clone
        database = Postgres(place)
        running.callback(database.close)
        database.start()
        database.make_database()
        url = f"postgresql+asyncpg://{USER}:{database.password}@127.0.0.1:{database.port}/{NAME}"
        variables = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
        yield running.enter_context(_server(folder / "on-postgres", variables))


@contextmanager
def _server(home: Path, variables: dict[str, str]) -> Iterator[Server]:
    home.mkdir()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/api"
    command = [PYTHON, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = ServerProcess(command, {**os.environ, "PREFECT_HOME": str(home), **variables}, url, home / "server.log")
    try:
        process.start()
        with environment(PREFECT_API_URL=url, PREFECT_HOME=str(home)):
            yield Server(home)
    finally:
        process.close()


@contextmanager
def workers(folder: Path, count: int) -> Iterator[None]:
    """Run `count` workers of the work pool, one run at a time each, at the server of this environment."""
    log = (folder / "workers.log").open("a")
    with log:
        subprocess.run(
            [PYTHON, "-m", "stillhouse", "flows", "deploy", "--only", "part"],
            cwd=ROOT,
            check=True,
            stdout=log,
            stderr=log,
        )
        command = [PYTHON, "-m", "prefect", "worker", "start", "--pool", "stillhouse", "--limit", "1"]
        running = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for _ in range(count)]
        try:
            yield
        finally:
            for worker in running:  # they are idle, and SIGTERM may leave one waiting forever
                worker.kill()
                worker.wait()
