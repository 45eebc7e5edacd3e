"""Launched processes report progress as JSON lines; everything else that they write is a log."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import BudgetSpent, RecipeError, TrainingError
from stillhouse.processes.children import run_command
from stillhouse.processes.events import EventProgress, ProgressEvent, progress_event
from tests.conftest import MakeRecipe

COUNTS = st.integers(0, 10**12)


@given(st.text(), COUNTS, COUNTS, st.lists(st.text()).map(tuple))
def test_an_event_is_one_line_that_is_read_back(activity: str, done: int, total: int, more: tuple[str, ...]) -> None:
    event = ProgressEvent(activity, done, total, more)
    assert "\n" not in event.as_line()
    assert "stillhouse" in json.loads(event.as_line())
    assert progress_event(event.as_line()) == event


@pytest.mark.parametrize(
    "line", ["", "step 1 of 2", '{"loss": 1}', '{"stillhouse": "progress", "activity": 3', "Labelling: 1 of 2"]
)
def test_what_else_is_written_is_no_event(line: str) -> None:
    assert progress_event(line) is None


def test_the_first_and_the_last_event_are_always_written(capsys: pytest.CaptureFixture[str]) -> None:
    progress = EventProgress()
    progress.tell_more("Training", lambda: ["loss 0.5"])
    for done in range(1, 101):
        progress("Training", done, 100)
    events = [progress_event(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0] == ProgressEvent("Training", 1, 100, ("loss 0.5",))
    assert events[-1] == ProgressEvent("Training", 100, 100, ("loss 0.5",))
    assert len(events) < 10


CHILD = """
import sys
from stillhouse.errors import *
from stillhouse.processes.events import EventProgress
from stillhouse.processes.ranks import write_failure
print("from a library", flush=True)
progress = EventProgress()
progress.tell_more("Training", lambda: ["loss 0.5"])
progress("Training", 1, 2)
progress("Training", 2, 2)
if sys.argv[1] == "refused":
    write_failure(RecipeError("too many", setting="student.packing", value=3, fix="take 2"))
    print("a traceback that nobody wants", file=sys.stderr)
    sys.exit(2)
sys.exit(int(sys.argv[1]))
"""


class Told:
    def __init__(self) -> None:
        self.progress: list[tuple[str, int, int]] = []
        self.more: list[str] = []

    def tell_more(self, activity: str, words: Any) -> None:
        self.more += words()

    def __call__(self, *what: Any) -> None:
        self.progress.append(what)


def run(recipe: Any, folder: Path, ends: str) -> tuple[list[str], Told]:
    lines: list[str] = []
    told = Told()
    try:
        run_command(recipe, folder, [sys.executable, "-c", CHILD, ends], lines.append, told, what="the training")
    finally:
        assert lines == ["from a library"]
        assert told.progress == [("Training", 1, 2), ("Training", 2, 2)]
        assert "loss 0.5" in told.more
    return lines, told


def test_progress_and_log_come_apart(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(scripted_recipe(), tmp_path, "0")


def test_the_error_comes_back_with_its_setting(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        run(scripted_recipe(), tmp_path, "refused")
    assert (refused.value.setting, refused.value.value, refused.value.fix) == ("student.packing", 3, "take 2")
    assert not isinstance(refused.value, BudgetSpent)


def test_a_process_that_says_nothing_is_reported_with_its_log(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the training exited with status 3.*\nfrom a library"):
        run(scripted_recipe(), tmp_path, "3")


def test_events_pass_through_a_pipe() -> None:
    code = "from stillhouse.processes.events import EventProgress; EventProgress()('Training', 1, 2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert progress_event(done.stdout.strip()) == ProgressEvent("Training", 1, 2)
