"""Prefect flows over the stages of `stillhouse`: they schedule, retry and show; the store decides what is done."""

import os
import sys


def _search_working_folder_last() -> None:
    """While Prefect imports a flow, it puts the working folder first on the path, where a user may have a `torch.py`."""
    if sys.path and sys.path[0] == os.getcwd():  # noqa: PTH109  the text that Prefect removes afterwards
        sys.path.append(sys.path.pop(0))


_search_working_folder_last()
