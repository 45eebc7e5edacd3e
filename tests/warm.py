"""Commands of Stillhouse that begin at once: forked from a process that has already imported torch and transformers.

    done = run_warm(["label", "recipe.yaml"], folder, environment)      # as subprocess.run, seconds sooner

The imports take about eight seconds of a processor, and those of the fork server of an evaluation as many: all commands
share them. Each command still is a process of its own, with its own streams, folder, environment and exit status. A command
of a fresh process, and what it imports, is the subject of cli/test_namesakes.py, test_layers.py and the first tests of
cli/test_cli.py.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

from stillhouse.evaluation.measures.processes import fresh_processes
from stillhouse.processes.quiet import quiet_libraries
from tests.paths import PYTHONPATH, ROOT


def run_warm(
    arguments: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m stillhouse` with these arguments in a folder; without `environment`, in that of this process."""
    words = [str(word) for word in arguments]
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory(prefix="stillhouse-warm-") as streams:
        output, errors = Path(streams, "output"), Path(streams, "errors")
        asked = {
            "arguments": words,
            "folder": str(folder),
            "environment": dict(os.environ if environment is None else environment),
            "streams": [os.devnull, str(output), str(errors)],
        }
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, status, output.read_text("utf-8"), errors.read_text("utf-8"))


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # closes its input, which ends it
    return server


def _serve() -> None:
    """Run each command that a line of standard input asks for, and print its exit status."""
    quiet_libraries()
    for module in ("stillhouse.evaluation.measures.measure", "stillhouse.student.training.train"):
        import_module(module)
    with fresh_processes():
        pass  # its fork server stays, for the commands to come
    forkserver.ensure_running = forkserver._forkserver.ensure_running = _is_running  # type: ignore[attr-defined]
    gc.freeze()  # a fork copies no page of what is imported only because it is looked at
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _become(**json.loads(line))
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _is_running() -> None:
    """A command cannot wait for the fork server, which is no child of its own; this process keeps it alive."""


def _become(arguments: list[str], folder: str, environment: dict[str, str], streams: list[str]) -> None:
    """Run the command in this process, which was forked for it; raises its SystemExit."""
    for number, file in enumerate(streams):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["stillhouse", *arguments]
    sys.path[0] = folder
    runpy.run_module("stillhouse", run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    _serve()
