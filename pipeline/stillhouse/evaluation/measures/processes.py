"""Fresh processes, whose memory holds only what they measure.

    with fresh_processes() as pool:
        pool.submit(measure, subject, task).result()

Each call runs in a new process. The libraries are imported once, in the fork server that the processes are forked from.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver

from stillhouse.processes.environment import safe_path_for_children

_PRELOADED = [
    "stillhouse.evaluation.measures.quiet_start",
    "stillhouse.evaluation.measures.measure",
    "stillhouse.evaluation.measures.distance",
    "transformers.generation",
]


@contextmanager
def fresh_processes() -> Iterator[ProcessPoolExecutor]:
    """Yield a pool that runs one process at a time, a new one for each call."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with safe_path_for_children():
        forkserver.ensure_running()
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        yield pool
