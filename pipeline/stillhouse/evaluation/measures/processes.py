"""Processes that have nothing in their memory but what they measure.

    with fresh_processes() as pool:
        pool.submit(measure, subject, task).result()

Every call has a new process; what it needs is imported once, in the process that they are forked from.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver

_PRELOADED = [
    "stillhouse.evaluation.measures.measure",
    "stillhouse.evaluation.measures.distance",
    "transformers.generation",
]
_SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def fresh_processes() -> Iterator[ProcessPoolExecutor]:
    """One process at a time, a new one for every call."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    _start_server()
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        yield pool


def _start_server() -> None:
    """Start the process that they are forked from, which would look for modules in the working folder first.

    Another `stillhouse` may lie there.
    """
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before
