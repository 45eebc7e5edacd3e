"""A labelling job by batches that is killed at any instant: no job is submitted twice, no answer lost or paid for twice."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from stillhouse.dataset.store import journal_folder
from stillhouse.labelling.batches import jobs
from stillhouse.labelling.engine import label
from stillhouse.labelling.journal import Journal
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.openai import OpenAiTeacher
from tests.conftest import MakeRecipe
from tests.labelling.batches.test_batches import PROMPTS, check, provider, recipe_of


class Killed(BaseException):
    """Stands for a kill: nothing that the process would still do is done."""


STEPS: dict[str, tuple[Any, str]] = {  # what a kill comes just before
    "the card that intends a job": (jobs.BatchJob, "updated"),
    "the lease": (Journal, "lend"),
    "the submission": (OpenAiTeacher, "submit_batch"),
    "the first look": (OpenAiTeacher, "read_batch"),
    "the results": (OpenAiTeacher, "batch_results"),
    "the repayment": (Journal, "repay"),
    "the card of a settled job": (jobs.BatchJob, "settled"),
    "the removal of files": (OpenAiTeacher, "remove_batch_files"),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("time_", [1, 2])
def test_killed_around_every_step(
    api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, step: str, after: bool, time_: int
) -> None:
    owner, name = STEPS[step]
    original, calls = getattr(owner, name), [0]

    def arrives() -> bool:
        calls[0] += 1
        return calls[0] == time_

    if name == "batch_results":

        async def results(self: Any, *arguments: Any) -> Any:
            kill = arrives()
            if kill and not after:
                raise Killed
            async for one in original(self, *arguments):
                yield one
            if kill:
                raise Killed

        replaced: Any = results
    elif asyncio.iscoroutinefunction(original):

        async def call(self: Any, *arguments: Any) -> Any:
            kill = arrives()
            if kill and not after:
                raise Killed
            result = await original(self, *arguments)
            if kill:
                raise Killed
            return result

        replaced = call
    else:

        def plain(self: Any, *arguments: Any, **named: Any) -> Any:
            kill = arrives()
            if kill and not after:
                raise Killed
            result = original(self, *arguments, **named)
            if kill:
                raise Killed
            return result

        replaced = plain
    with provider() as server:
        recipe = recipe_of(api_recipe, server, batch={"requests": 6, "unseen": 0.0}, budget_usd=1.0)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replaced)
            try:
                asyncio.run(label(recipe))
            except Killed:
                pass
            else:
                assert calls[0] < time_
        asyncio.run(label(recipe))
        batches = server.server.batches
        assert set(batches.submitted.values()) == {1}
        assert max(server.stats.billed.values()) == 1
        assert not lent(recipe)
        never = [job for job in jobs.read_jobs(journal_folder(recipe.dataset)) if not job.card.remote_id]
        if not never:
            check(recipe, server, billed=12, jobs=2)


def lent(recipe: Recipe) -> dict[str, float]:
    with Journal(journal_folder(recipe.dataset), soft=None) as journal:
        return journal.lent()


@pytest.mark.slow
def test_killed_again_and_again(api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path) -> None:
    random = Random(0)
    ends = ["expired:1", "completed", "queue", "lost:1", "cut", "double", "cancelled:1"]
    with provider(*ends, polls=3) as server:
        batch = {"requests": 4, "unseen": 0.5, "poll": 0.1}
        recipe = recipe_of(api_recipe, server, batch=batch, budget_usd=1.0)
        command = [sys.executable, "-m", "stillhouse", "label", str(recipe_file(recipe)), "--no-flow"]
        for _ in range(8):
            process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            time.sleep(random.uniform(0.8, 2.5))
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        asyncio.run(label(recipe))
        assert set(server.server.batches.submitted.values()) == {1}
        assert set(server.stats.billed) == set(PROMPTS)
        assert max(server.stats.billed.values()) == 1
        assert not lent(recipe)
