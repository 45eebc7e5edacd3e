"""A growing source through the label flow: what a run made, or that nothing was new, stands in its state's message."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import dataset_folder, versions
from stillhouse.errors import DatasetBusy
from stillhouse.labelling.result import LabelResult
from stillhouse.recipe.recipe import Recipe
from stillhouse.storage.durable import write_lock
from tests.conftest import WORDS, MakeRecipe
from tests.flows import PREFECTS_WARNINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    PREFECTS_WARNINGS,
]


def run_of(recipe: Path, *overrides: str) -> Any:
    """The final state of a run of the flow."""
    from stillhouse_flows.label import label_flow

    return asyncio.run(label_flow(str(recipe), list(overrides), return_state=True))  # type: ignore[call-overload]


def test_a_run_says_what_it_made_and_from_which_version_and_when_nothing_is_new(
    scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], word_prompts: Path
) -> None:
    recipe = scripted_recipe()
    file = recipe_file(recipe)
    assert run_of(file).message == "words/v001: 12 requests sent, 0 answered before"
    with word_prompts.open("a") as lines:
        lines.write(json.dumps({"word": "anchor", "reference": "A thing."}) + "\n")
    assert run_of(file).message == "words/v002, from words/v001: 1 requests sent, 12 answered before"
    state = run_of(file)
    assert (state.name, state.message) == (
        "Completed",
        "nothing to do: words/v002 already has answers to all 13 prompts",
    )
    result = asyncio.run(state.aresult())
    assert isinstance(result, LabelResult)
    assert not result.fresh
    assert versions(dataset_folder(recipe.dataset)) == [1, 2]


def test_a_run_that_finds_another_leaves_or_waits_and_says_for_whom(
    scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = scripted_recipe()
    file = recipe_file(recipe)
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with write_lock(dataset_folder(recipe.dataset)):
            held.set()
            enough.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(30)
        state = run_of(file)
        assert state.is_failed()
        with pytest.raises(DatasetBusy, match="being written by another run"):
            asyncio.run(state.aresult())
        threading.Timer(3, enough.set).start()
        state = run_of(file, "dataset.when_busy=wait")
        assert state.message == f"words/v001: {len(WORDS)} requests sent, 0 answered before"
        assert "Seconds waited for process" in caplog.text
    finally:
        enough.set()
        thread.join()
