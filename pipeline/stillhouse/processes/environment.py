"""The environment of child processes: they import Stillhouse and its libraries, never a file of the working folder.

Python puts the working folder first on the import path when it runs a module (`python -m accelerate.commands.launch`,
`python -m vllm...`), so that a file `torch.py` or `datasets.py` there would shadow the library. PYTHONSAFEPATH prevents
this in the process and in its own children.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of this process with a safe import path and `more`."""
    return {**os.environ, **_safe_path(), **(more or {})}


def _safe_path() -> dict[str, str]:
    """Return variables that keep the working folder off the import path of a child, where Prefect's workers put it too."""
    here = Path.cwd()
    entries = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one and Path(one).resolve() != here]
    return {**SAFE_PATH, **({"PYTHONPATH": os.pathsep.join(entries)} if "PYTHONPATH" in os.environ else {})}


@contextmanager
def safe_path_for_children() -> Iterator[None]:
    """Set these variables for the block, for libraries such as multiprocessing that take no environment."""
    safe = _safe_path()
    before = {name: os.environ.get(name) for name in safe}
    os.environ.update(safe)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def remove_working_folder_from_path() -> None:
    """Remove the working folder from this process's import path, where `python -m stillhouse` has put it."""
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
