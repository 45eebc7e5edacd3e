"""A proxy of the environment that is in the way is named, with its variable and the way around it, and no password."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx2
import pytest
from pydantic import SecretStr

from stillhouse.errors import TeacherRefused
from stillhouse.teachers.base import AttemptFailed, Refusal
from stillhouse.teachers.serving.connection_errors import connection_error
from stillhouse.teachers.serving.openai_api import Content, Endpoint, OpenAiApi, Timeouts
from tests.stand_in import RunningStandIn, running_stand_in

KEY = "0a1b2c3d4e5f/+key"
BODY = {"model": "stand-in", "messages": [{"role": "user", "content": "Name a colour."}]}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[RunningStandIn]:
    with running_stand_in() as running:
        yield running


class Refusing:
    """A proxy that answers every request, and every wish for a tunnel, with one status."""

    def __init__(self, status: int) -> None:
        self._status = status
        self.seen: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.seen.append(head.split(b"\r\n")[0].decode())
        writer.write(f"HTTP/1.1 {self._status} Refused\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


def ask(base_url: str, *, direct: bool = False) -> Content | Refusal:
    """One attempt."""
    api = OpenAiApi(Endpoint(base_url, SecretStr(KEY), Timeouts(connect=2, read=5), direct))

    async def once() -> Content | Refusal:
        try:
            return await api.fetch("/chat/completions", BODY)
        finally:
            await api.close()

    return asyncio.run(once())


@contextmanager
def listening(proxy: Refusing, monkeypatch: pytest.MonkeyPatch, variable: str) -> Iterator[None]:
    """The proxy in a thread of its own, named by the variable."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listener = asyncio.run_coroutine_threadsafe(asyncio.start_server(proxy, "127.0.0.1", 0), loop).result(10)
    port = listener.sockets[0].getsockname()[1]
    monkeypatch.setenv(variable, f"http://me:s3cret@127.0.0.1:{port}")
    try:
        yield
    finally:
        loop.call_soon_threadsafe(listener.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, server: RunningStandIn, variable: str) -> None:
    monkeypatch.setenv(variable, "http://me:s3cret@127.0.0.1:9")
    with pytest.raises(AttemptFailed, match="cannot be reached") as told:
        ask(server.base_url)
    assert f"through the proxy http://127.0.0.1:9 ({variable})" in told.value.detail
    assert "set NO_PROXY=127.0.0.1 to bypass it" in told.value.detail
    assert (told.value.server_at_fault, told.value.cost_usd) == (True, 0.0)
    assert "s3cret" not in told.value.detail
    assert server.stats.requests == 0


@pytest.mark.parametrize(
    "way",
    [{"NO_PROXY": "127.0.0.1"}, {"no_proxy": "example.org,127.0.0.1"}, {"NO_PROXY": "*"}, {"direct": True}],
)
def test_a_server_that_is_reached_without_the_proxy_is_asked(
    monkeypatch: pytest.MonkeyPatch, server: RunningStandIn, way: dict[str, Any]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://me:s3cret@127.0.0.1:9")
    direct = way.pop("direct", False)
    for name, value in way.items():
        monkeypatch.setenv(name, value)
    assert isinstance(ask(server.base_url, direct=direct), Content)


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("ALL_PROXY", "socks5://me:s3cret@127.0.0.1:9"),
        ("ALL_PROXY", "socks5h://me:s3cret@127.0.0.1:9"),
        ("HTTP_PROXY", "socks4://me:s3cret@127.0.0.1:9"),
        ("HTTP_PROXY", "ftp://me:s3cret@127.0.0.1:9"),
        ("HTTP_PROXY", "http://me:s3cret@127.0.0.1:99999"),
        ("HTTP_PROXY", "http://me:s3cret@127.0.0.1:nine"),
        ("HTTP_PROXY", "http://me:s3cret@127.0.0.1:9\n"),
    ],
)
def test_a_proxy_that_no_request_can_go_through_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, server: RunningStandIn, variable: str, url: str
) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(TeacherRefused, match=f"{variable}.*nothing was sent") as told:
        ask(server.base_url)
    assert "s3cret" not in str(told.value)
    assert "127.0.0.1:" in str(told.value)
    assert told.value.fix is not None and "http://" in told.value.fix
    assert server.stats.requests == 0


@pytest.mark.parametrize(("status", "ends"), [(403, True), (407, True), (429, False), (502, False), (503, False)])
def test_a_proxy_that_refuses_a_tunnel_is_named_and_no_prompt_is_blamed(
    monkeypatch: pytest.MonkeyPatch, status: int, ends: bool
) -> None:
    proxy = Refusing(status)
    with listening(proxy, monkeypatch, "HTTPS_PROXY"), pytest.raises(TeacherRefused if ends else AttemptFailed) as told:
        ask("https://example.invalid/v1")
    assert f"(HTTPS_PROXY) answered {status} to a request for https://example.invalid/v1" in str(told.value)
    assert "set NO_PROXY=example.invalid" in str(told.value)
    assert "s3cret" not in str(told.value)
    assert isinstance(told.value, TeacherRefused) or told.value.server_at_fault
    assert proxy.seen == ["CONNECT example.invalid:443 HTTP/1.1"]


@pytest.mark.parametrize("status", [403, 502, 503])
def test_what_a_proxy_answers_in_the_place_of_a_server_names_the_proxy(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    proxy = Refusing(status)
    with listening(proxy, monkeypatch, "HTTP_PROXY"), pytest.raises((TeacherRefused, AttemptFailed)) as told:
        ask("http://example.invalid/v1")
    assert "http://example.invalid/v1 through the proxy http://127.0.0.1:" in str(told.value)
    assert f"(HTTP_PROXY) returned {status}" in str(told.value)
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(
    "error", [aiohttp.InvalidURL("http://127.0.0.1:99999"), httpx2.UnsupportedProtocol("ftp://127.0.0.1")]
)
def test_a_url_that_only_the_transport_refuses_ends_the_run(error: Exception) -> None:
    told = connection_error(error, "http://127.0.0.1:9/v1", None, 300, str)
    assert isinstance(told, TeacherRefused)
    assert "nothing was sent" in str(told)
