"""Options that several commands share, and how a command reports an error."""

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

from stillhouse.errors import StillhouseError, StorageFailed, UsageError
from stillhouse.processes import ranks
from stillhouse.storage.location import Location, location

_FIRST_PROCESS_SECONDS = 10.0  # for the first of several processes to report an error that all of them find

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result, or the error, as one JSON object on standard output.")
]

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, such as flows/recipes/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting of the recipe; repeatable.")
]


def _root(text: str | Path) -> Location:
    try:
        return location(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


Root = Annotated[  # a Location, a type that Typer does not know
    Any, typer.Option("--root", parser=_root, metavar="FOLDER", help="The folder or URL of the datasets.")
]


LABELS = Path("data/labels")  # the default of `Root`


@contextmanager
def reporting_errors(as_json: bool = False) -> Iterator[None]:
    """End with the error on standard error and its exit status; SIGTERM interrupts as Ctrl-C does.

    Args:
        as_json: also print {"error": ...} on standard output, with the fields of `StillhouseError.as_dict`.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell script makes background jobs ignore SIGINT
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except StillhouseError as error:
        ranks.write_failure(error)
        if as_json and ranks.is_first():
            _print_json_error(error)
        if ranks.is_first() or not isinstance(error, UsageError):
            print_error(f"{_process_name()}error: {error}")
        else:  # every process finds the same error; the launcher ends all of them when the first one ends
            time.sleep(_FIRST_PROCESS_SECONDS)
        raise typer.Exit(error.exit_status) from None
    except KeyboardInterrupt:
        if ranks.is_first():
            print_error(f"interrupted; finished work is kept. Continue with: {_same_command()}")
        raise typer.Exit(130) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise  # not about a file: a defect, which keeps its traceback
        failed = StorageFailed(f"{error.strerror}: {error.filename or 'while writing'}. Finished work is kept.")
        if as_json and ranks.is_first():
            _print_json_error(failed)
        print_error(f"error: {failed}")
        raise typer.Exit(1) from None


def _print_json_error(error: StillhouseError) -> None:
    from stillhouse.cli.terminal import show_json

    show_json({"error": error.as_dict()})


def _process_name() -> str:
    return f"process {ranks.rank()}: " if ranks.processes() > 1 else ""


def _same_command() -> str:
    if ranks.processes() > 1:
        return f"the same launcher, -m stillhouse {shlex.join(sys.argv[1:])}"
    return shlex.join(["stillhouse", *sys.argv[1:]])


def print_error(message: str) -> None:
    """Print a line on standard error."""
    from stillhouse.cli.terminal import errors

    errors.print(message, markup=False)
