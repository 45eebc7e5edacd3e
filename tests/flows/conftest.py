"""The only Prefect harness: one real API server on a fresh database for the tests of this folder.

`prefect_api` is Prefect's own, for flows that run in the tests' process. `prefect_server` is `prefect server start`, with
the services that schedule runs and watch over them, for deployments; `composed_server` is the same on PostgreSQL, as
docker/compose.yaml starts both.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import compose
from tests.paths import ROOT
from tests.ports import free_ports
from tests.postgres import Postgres

os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="stillhouse-prefect-")  # before prefect is imported
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


@pytest.fixture(autouse=True)
def what_is_left_open_shows(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test left open is collected with it, and not with another.

    Prefect 3.8.8 reads the server's settings for an asynchronous flow with a client that it never closes, unless one is
    open: `stillhouse_flows.label.run_label_flow` opens one, and so does this for tests that call the flow itself.
    """
    with ExitStack() as stack:
        if "prefect_api" in request.fixturenames:
            request.getfixturevalue("prefect_api")
            from prefect.context import SyncClientContext

            stack.enter_context(SyncClientContext.get_or_create())
        gc.freeze()  # only what the test makes is collected below
        yield
    gc.collect()


@pytest.fixture(scope="package")
def prefect_api() -> Iterator[None]:
    """A Prefect API of the tests' own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


class ServerProcess:
    """`prefect server start`; `start` and `kill` as often as wanted, on the same port."""

    def __init__(self, command: list[str], environment: dict[str, str], url: str, log: Path) -> None:
        self._command = command
        self._environment = environment
        self._url = url
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("a") as output:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=output, stderr=output
            )
        until = time.monotonic() + 300
        while time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(f"{self._url}/health", timeout=5):
                return
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.5)
        raise AssertionError(f"the server never answered: {self._log.read_text()}")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
            self.kill()


@dataclass(frozen=True)
class PrefectServer:
    """A server of its own process; `environment` is what a command needs to speak to it."""

    url: str
    environment: dict[str, str]


@pytest.fixture(scope="package")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """`prefect server start` on SQLite, as the README starts it."""
    home = tmp_path_factory.mktemp("prefect-server")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": url, "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = ServerProcess(command, environment, url, home / "server.log")
    try:
        server.start()
        yield PrefectServer(url, environment)
    finally:
        server.close()


@dataclass(frozen=True)
class ComposedServer:
    """The services `postgres` and `server` of docker/compose.yaml, as processes of this machine."""

    url: str
    user: tuple[str, str]  # and the password, as the server asks for them
    database: Postgres
    process: ServerProcess
    home: Path  # Prefect's; its log lies in it
    services: dict[str, Any]  # of docker/compose.yaml

    def environment(self, service: str, **more: str) -> dict[str, str]:
        """For a service that speaks to the server."""
        given = compose.environment_of(self.services[service], PREFECT_API_URL=self.url)
        return {**os.environ, "PREFECT_HOME": str(self.home), "DO_NOT_TRACK": "1", **given, **more}

    def from_outside(self) -> PrefectServer:
        """For commands of this machine, as docs/operations.md gives them."""
        address = {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": ":".join(self.user)}
        return PrefectServer(self.url, {**os.environ, "PREFECT_HOME": str(self.home), "DO_NOT_TRACK": "1", **address})


@pytest.fixture(scope="package")
def composed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposedServer]:
    """A Prefect server on PostgreSQL, with a password."""
    home = tmp_path_factory.mktemp("composed-server")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/api"
    user = ("admin", "letmein-88f1")
    with tempfile.TemporaryDirectory(prefix="stillhouse-postgres-") as folder:
        Path(folder).chmod(0o755)  # it may be another user's
        database = Postgres(Path(folder))
        services = compose.services(POSTGRES_PASSWORD=database.password, PREFECT_SERVER_API_AUTH_STRING=":".join(user))
        service = services["server"]
        here = {"PREFECT_SERVER_DATABASE_HOST": "127.0.0.1", "PREFECT_SERVER_DATABASE_PORT": str(database.port)}
        environment = {**os.environ, "PREFECT_HOME": str(home), **compose.environment_of(service, **here)}
        command = compose.command_of(service, host="127.0.0.1", port=str(port))
        server = ServerProcess(command, environment, url, home / "server.log")
        try:
            database.start()
            database.make_database()
            server.start()
            yield ComposedServer(url, user, database, server, home, services)
        finally:
            server.kill()
            database.close()
