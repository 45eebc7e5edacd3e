"""Chromium without a head, by its DevTools protocol: a page is opened, looked at, hovered, typed at and tapped.

with open_page(file, width=390, touch=True) as page:
    page.value("document.title")
    page.errors, page.requests
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

_SECONDS = 60  # a busy machine starts it slowly


def find_chromium() -> str:
    """The browser's command; where there is none a test is skipped, and with STILLHOUSE_BROWSER set it fails."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        mend = "the dataset page is not looked at: install chromium (Debian: apt-get install chromium)"
        if os.environ.get("STILLHOUSE_BROWSER"):
            pytest.fail(mend)
        pytest.skip(mend)
    return found


class Page:
    """One open page. `errors` are what its console complained of, `requests` the addresses that it asked for."""

    def __init__(self, connection: ClientConnection) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._connection = connection
        self._numbers = itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._connection.recv(timeout=_SECONDS))
            self._note(said)
            if said.get("id") == number:
                assert "error" not in said, f"{method}: {said['error']}"
                result: dict[str, Any] = said["result"]
                return result

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def hover(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, x: float, y: float) -> None:
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        deadline = time.monotonic() + _SECONDS
        while self.value("document.getElementById('tip').hidden") and time.monotonic() < deadline:
            time.sleep(0.1)  # the browser makes a click of a touch when it sees fit

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            codes = {"Tab": 9, "Escape": 27, "End": 35, "ArrowRight": 39}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def place(self, selector: str, index: int = 0) -> tuple[float, float]:
        """The middle of an element, scrolled to."""
        x, y = self.value(
            f"(() => {{ const e = document.querySelectorAll({selector!r})[{index}]; e.scrollIntoView({{block: 'center'}});"
            " return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {"
            " const r = e.getClientRects()[0]; done([r.x + r.width / 2, r.y + r.height / 2]); }))); })()"
        )
        return x, y

    def _note(self, said: dict[str, Any]) -> None:
        method, given = said.get("method"), said.get("params", {})
        if method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(given["args"]))
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(given["exceptionDetails"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])


@contextmanager
def open_page(
    file: Path, *, width: int = 1280, height: int = 900, touch: bool = False, dark: bool = False
) -> Iterator[Page]:
    """A page from a file in a browser of its own, which ends with the block."""
    command = find_chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
        browser = subprocess.Popen(
            [command, *options, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_page_socket(Path(profile)), max_size=None, compression=None) as connection:
                page = Page(connection)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    page.call(f"{domain}.enable")
                page.call(
                    "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch
                )
                page.call("Emulation.setTouchEmulationEnabled", enabled=touch)
                page.call("Emulation.setFocusEmulationEnabled", enabled=True)
                scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                page.call("Emulation.setEmulatedMedia", features=[scheme])
                page.call("Page.navigate", url=file.as_uri())
                deadline = time.monotonic() + _SECONDS
                while page.value("document.readyState + location.protocol") != "completefile:":
                    assert time.monotonic() < deadline, "the page was never complete"
                    time.sleep(0.05)
                yield page
        finally:
            browser.terminate()
            browser.wait(timeout=_SECONDS)


def _page_socket(profile: Path) -> str:
    """The address of the one page's socket, once the browser has said where it listens."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        port = profile / "DevToolsActivePort"
        if port.is_file() and (lines := port.read_text().split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=_SECONDS) as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise AssertionError("chromium did not start")
