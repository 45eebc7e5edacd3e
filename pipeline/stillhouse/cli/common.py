"""What every command shares: its options, and how an error ends it."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.errors import StillhouseError, UsageError
from stillhouse.processes import ranks
from stillhouse.storage.location import Location, location

_LEFT_TO_THE_FIRST = 10.0  # seconds in which the first of several processes can tell what is wrong

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]


def _root(text: str | Path) -> Location:
    try:
        return location(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


Root = Annotated[  # a Location, which Typer knows nothing of
    Any, typer.Option("--root", parser=_root, metavar="FOLDER", help="The folder or URL that holds the datasets.")
]


@contextmanager
def reporting_errors() -> Iterator[None]:
    """End with one clear line and the right exit status; SIGTERM is an interruption like Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored by what a script starts with `&`
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except StillhouseError as error:
        ranks.leave_failure(error)
        if ranks.is_first() or not isinstance(error, UsageError):
            tell(f"{_who()}error: {error}")
        else:  # every process finds the same; the launcher ends all when the first one ends
            time.sleep(_LEFT_TO_THE_FIRST)
        raise typer.Exit(error.exit_status) from None
    except KeyboardInterrupt:
        if ranks.is_first():
            tell(f"interrupted; what was done is kept. Go on with: {_same_command()}")
        raise typer.Exit(130) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise  # not of a file: a defect of ours, which keeps its traceback
        tell(f"error: {error.strerror}: {error.filename or 'while writing'}. What was done is kept.")
        raise typer.Exit(1) from None


def _who() -> str:
    return f"process {ranks.rank()}: " if ranks.processes() > 1 else ""


def _same_command() -> str:
    if ranks.processes() > 1:
        return f"the same launcher, -m stillhouse {shlex.join(sys.argv[1:])}"
    return shlex.join(["stillhouse", *sys.argv[1:]])


def tell(message: str) -> None:
    """One line on standard error."""
    from stillhouse.cli.terminal import errors

    errors.print(message, markup=False)
