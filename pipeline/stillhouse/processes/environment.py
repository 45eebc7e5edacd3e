"""The environment of processes that Stillhouse starts: they find its code and the libraries, and never a user's file.

Python puts the working folder before everything installed when it runs a module (`python -m accelerate.commands.launch`,
`python -m vllm...`), so a file that is called `torch.py` or `datasets.py` there would be imported in place of the library.
With PYTHONSAFEPATH it does not, nor does what the process starts in its turn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of this process, with a safe path and `more`."""
    return {**os.environ, **SAFE_PATH, **(more or {})}


@contextmanager
def safe_path_for_children() -> Iterator[None]:
    """For what starts a process without asking for its environment, such as multiprocessing."""
    before = {name: os.environ.get(name) for name in SAFE_PATH}
    os.environ.update(SAFE_PATH)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def leave_working_folder_out() -> None:
    """Take the working folder off the path of this process, where `python -m stillhouse` has put it."""
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
