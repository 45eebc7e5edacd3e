"""Code shared by all benchmarks: processes with their time and memory, the stand-in server, recipes, and docs sections.

    with scratch() as folder, serving(latency=0.05) as server:
        ended = run([PYTHON, "-m", "stillhouse", "label", ...], log=folder / "log.txt")
        write_section("label-memory", table(headers, rows), DOCS)

This module imports little on purpose: on Linux, `ru_maxrss` survives exec, so the peak memory of a child process is at
least that of its parent at the fork. The measuring process must therefore be small.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.asking import MAX_TOKENS, MODEL, TEMPERATURE

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/benchmarks.md"
PYTHON = sys.executable
STILLHOUSE = [PYTHON, "-m", "stillhouse"]
MIB = 1 << 20

# ------------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Ended:
    """The result of a finished process."""

    seconds: float
    peak_bytes: int  # of resident memory
    output: str  # standard output

    @property
    def last_json(self) -> dict[str, Any]:
        """The JSON object on the last line of the output."""
        found: dict[str, Any] = json.loads(self.output.strip().splitlines()[-1])
        return found


class Running:
    """A process started in the repository's root; its standard error is appended to a log."""

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        self._command = [str(part) for part in command]
        self._log = log
        self._output = log.with_suffix(".out")
        self._began = time.perf_counter()
        with log.open("ab") as errors, self._output.open("wb") as output:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=output, stderr=errors)

    @property
    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end of the process."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait(self) -> Ended:
        """Wait for the end of the process.

        Raises:
            SystemExit: the exit status is not 0; the message ends with the last lines of the log.
        """
        _, status, usage = os.wait4(self._process.pid, 0)
        seconds = time.perf_counter() - self._began
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise SystemExit(f"{tail}\n{' '.join(self._command)}\nended with status {self._process.returncode}")
        return Ended(seconds, usage.ru_maxrss * 1024, self._output.read_text(errors="replace"))


def run(command: Sequence[str | Path], log: Path) -> Ended:
    """Run a command to its end, and measure its time and peak memory."""
    return Running(command, log).wait()


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a temporary folder on the disk of the datasets; on an in-memory file system every fsync would be free."""
    (ROOT / "data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "data", prefix="benchmark-") as folder:
        yield Path(folder)


# ------------------------------------------------------------------------------------------------------------ the server


@dataclass(frozen=True)
class Server:
    """A stand-in server in a separate process."""

    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, Any]:
        return self._get("stats")

    def span(self) -> dict[str, Any]:
        return self._get("span")

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def serving(latency: float, log: Path, *, batches: Mapping[str, Any] | None = None) -> Iterator[Server]:
    """Run a stand-in server with counts at 0, on a free port of the loopback interface; `batches` are its batch jobs'."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(probe.getsockname()[1])
    command = [PYTHON, "-m", "benchmarks.server", "--port", server.port, "--latency", latency]
    command += ["--batches", json.dumps(batches or {})]
    process = Running([str(part) for part in command], log)
    try:
        _wait_for(server, process)
        yield server
    finally:
        process.kill()


def _wait_for(server: Server, process: Running) -> None:
    for _ in range(200):
        try:
            server.stats()
            return
        except OSError:
            if process.has_ended:
                break
            time.sleep(0.05)
    raise SystemExit(f"the stand-in did not start on port {server.port}")


# --------------------------------------------------------------------------------------------------- prompts and recipes


def write_prompts(file: Path, count: int) -> Path:
    """Write `count` distinct prompts as JSON lines; return the file."""
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            lines.write(
                json.dumps({"prompt": f"Name a colour that goes well with the number {number}, and why."}) + "\n"
            )
    return file


def openai_teacher(base_url: str) -> dict[str, Any]:
    return {"kind": "openai", "model": MODEL, "options": {"base_url": base_url}}


def write_recipe(folder: Path, prompts: Path, *, teacher: Mapping[str, Any], shard_size: int, concurrency: int) -> Path:
    """Write a recipe for text labels of the prompts; its dataset `benchmark` is in the same folder. Return the file."""
    recipe = {
        "name": "benchmark",
        "prompts": {"source": str(prompts)},
        "teacher": teacher,
        "label": {
            "sampling": {"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS},
            "shard_size": shard_size,
            "concurrency": concurrency,
        },
        "dataset": {"root": str(folder / "labels"), "name": "benchmark"},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe, indent=2), encoding="utf-8")  # JSON is YAML too
    return file


def bytes_in(folder: Path) -> int:
    """Return the total size of a folder's files; files that disappear meanwhile count as 0."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


class DiskWatch:
    """Measure the maximum size of a folder during the `with`, by polling twice per second."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> DiskWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            self.most = max(self.most, bytes_in(self._folder))


# ------------------------------------------------------------------------------------------------------------- in turns

One = TypeVar("One")


def in_turn(ways: Iterable[One], number: int) -> list[One]:
    """Return `ways` in the order of round `number`: each round starts with a different one, so none is always first."""
    listed = list(ways)
    first = number % len(listed)
    return [*listed[first:], *listed[:first]]


# -------------------------------------------------------------------------------------------------------------- the docs


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---", *("---:" for _ in headers[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headers, rule, *rows])


def write_section(name: str, text: str, file: Path) -> None:
    """Print a section, and write it between its markers in the docs; other sections do not change."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = file.read_text(encoding="utf-8") if file.is_file() else ""
    if begin not in page:
        page += f"\n{begin}\n{end}\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page), encoding="utf-8")
    print(f"\n{text}\n")


def run_parts(family: str, parts: Sequence[str], about: str) -> None:
    """Run a benchmark's command line: measure the parts named in the arguments (default: all), and write their sections.

    The part `x` of `family` is the function `measure(small: bool) -> str` of the module `benchmarks.<family>_x`, and
    its section in the docs is `<family>-x`.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; all, if none is named")
    parser.add_argument("--small", "--smoke", action="store_true", help="little work, one round: try the scripts out")
    parser.add_argument("--output", type=Path, default=DOCS, help="the Markdown file with the sections")
    given = parser.parse_args()
    unknown = set(given.parts) - set(parts)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(parts)}")
    for part in given.parts or parts:
        measure = import_module(f"benchmarks.{family}_{part}").measure  # lazy import: this process must stay small
        write_section(f"{family}-{part}", measure(given.small), given.output)


def measured_on(packages: Mapping[str, str]) -> str:
    """Return a paragraph with the date, commit, machine and package versions of a measurement."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    versions = ", ".join(f"{package} {number}" for package, number in packages.items())
    return (
        f"*Measured {datetime.now(UTC):%Y-%m-%d} at commit {_commit()}, on {_processor()}, {cores} cores, "
        f"{memory:.0f} GiB of memory, Linux {platform.release()}, Python {platform.python_version()}; {versions}.*"
    )


def versions_of(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """Return the commit of the measured code, and whether there are uncommitted changes to the package."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "pipeline", "flows")
    return f"`{git('rev-parse', '--short', 'HEAD')}`" + (" with changes that are not committed" if changed else "")
