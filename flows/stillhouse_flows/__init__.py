"""Prefect flows over the stages of `stillhouse`: scheduling, retries, artifacts. The store decides what is done."""

import os
import sys


def search_working_folder_last() -> None:
    """Put the working folder last on the path while Prefect imports a flow.

    Prefect puts it first, twice in a worker's run, and a user's `torch.py` would be imported in place of the library. It
    stays on the path, since Prefect removes it afterwards. The modules of flows that are deployed call this before they
    import anything else.
    """
    folder = os.getcwd()  # noqa: PTH109  as Prefect writes it
    times = sys.path.count(folder)
    sys.path[:] = [entry for entry in sys.path if entry != folder] + [folder] * times
