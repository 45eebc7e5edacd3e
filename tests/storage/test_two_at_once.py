"""Two runs at one dataset, in a folder of this machine and in a store: the second leaves or waits, as it is set to."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import dataset_folder, versions
from stillhouse.errors import DatasetBusy
from stillhouse.labelling import dataset_lock
from stillhouse.labelling.engine import label
from stillhouse.labelling.result import LabelResult
from stillhouse.recipe.recipe import Recipe
from stillhouse.storage import lock
from stillhouse.storage.durable import write_atomically, write_lock
from stillhouse.storage.location import Location, location
from tests.conftest import WORDS, MakeRecipe
from tests.labelling.test_durability import CONCURRENCY, command, ended, until
from tests.labelling.test_growing import labelled, write_words
from tests.stand_in import running_stand_in


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where datasets lie: a folder of this machine, or a store."""
    if request.param == "local":
        return str(tmp_path / "labels")
    monkeypatch.setattr(dataset_lock, "_RETRY_REMOTE_EVERY", 0.3)
    return str(request.getfixturevalue("s3_root"))


def with_busy(recipe: Recipe, root: str, journal: Path, **settings: Any) -> Recipe:
    own = {"root": root, "journal": str(journal), **settings}
    return recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update=own)})


@contextmanager
def written_meanwhile(folder: Location) -> Iterator[threading.Event]:
    """A thread that writes a dataset until the event is set, or the block ends."""
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with write_lock(folder):
            held.set()
            enough.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    try:
        yield enough
    finally:
        enough.set()
        thread.join()


def test_by_default_the_second_leaves_and_names_the_first(
    scripted_recipe: MakeRecipe, root: str, tmp_path: Path
) -> None:
    recipe = with_busy(scripted_recipe(), root, tmp_path / "journal")
    with (
        written_meanwhile(dataset_folder(recipe.dataset)),
        pytest.raises(DatasetBusy, match=r"being written by another run \(process \d+ on ") as error_info,
    ):
        labelled(recipe)
    assert (error_info.value.setting, error_info.value.value) == ("dataset.when_busy", "leave")
    assert error_info.value.holder.startswith("process ")
    assert versions(dataset_folder(recipe.dataset)) == []


def test_one_that_waits_tells_for_whom_and_goes_on_with_what_the_source_is_then(
    scripted_recipe: MakeRecipe, word_prompts: Path, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_lock, "_REPORT_EVERY", 0.2)
    recipe = with_busy(scripted_recipe(), root, tmp_path / "journal", when_busy="wait", patience=60)
    write_words(word_prompts, WORDS[:4])
    first = labelled(recipe)
    told: list[str] = []
    with written_meanwhile(dataset_folder(recipe.dataset)) as enough:

        def progress(activity: str, done: int, total: int) -> None:
            told.append(f"{activity}: {done} of {total}")
            if len(told) == 3:
                write_words(word_prompts, WORDS[:7])  # after the waiting run read the source, and before its turn
                enough.set()

        second = asyncio.run(label(recipe, progress))
    assert all(line.startswith("Seconds waited for process ") and line.endswith(" of 60") for line in told[:3])
    assert (second.sent, second.reused, second.dataset.manifest.prompts) == (3, 4, 7)
    assert second.dataset.manifest.parents == (first.dataset.manifest.label,)


def test_two_that_start_together_and_wait_ask_everything_once(
    scripted_recipe: MakeRecipe, root: str, tmp_path: Path
) -> None:
    """Each has a journal of its own, as on two machines: the second finds what the first wrote in the dataset."""
    recipes = [
        with_busy(scripted_recipe(), root, tmp_path / f"journal-{name}", when_busy="wait", patience=60) for name in "ab"
    ]
    results: list[LabelResult] = []
    threads = [threading.Thread(target=lambda one=one: results.append(labelled(one))) for one in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((one.sent, one.reused, one.fresh) for one in results) == [(0, 12, False), (12, 0, True)]
    assert versions(dataset_folder(recipes[0].dataset)) == [1]


def test_patience_has_an_end(scripted_recipe: MakeRecipe, root: str, tmp_path: Path) -> None:
    recipe = with_busy(scripted_recipe(), root, tmp_path / "journal", when_busy="wait", patience=1.5)
    with (
        written_meanwhile(dataset_folder(recipe.dataset)),
        pytest.raises(DatasetBusy, match=r"process \d+ on .* has waited for 2 s") as error_info,
    ):
        labelled(recipe)
    assert (error_info.value.setting, error_info.value.value) == ("dataset.patience", 1.5)


def test_a_store_s_holder_that_died_is_waited_for_no_longer_than_its_lock_lasts(
    scripted_recipe: MakeRecipe, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_lock, "_RETRY_REMOTE_EVERY", 0.3)
    monkeypatch.setattr(lock, "STALE_AFTER", 2.0)
    recipe = with_busy(scripted_recipe(), s3_root, tmp_path / "journal", when_busy="wait", patience=60)
    write_atomically(location(s3_root) / "words" / lock.FILE_NAME, b"of a machine that is gone")
    began = time.monotonic()
    assert labelled(recipe).sent == 12
    assert time.monotonic() - began > 1


def test_an_interrupted_wait_ends_at_once(
    scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    recipe = with_busy(scripted_recipe(), str(tmp_path / "labels"), tmp_path / "journal", when_busy="wait")
    with write_lock(dataset_folder(recipe.dataset)):
        run = [sys.executable, "-m", "stillhouse", "label", str(recipe_file(recipe)), "--no-flow"]
        with subprocess.Popen(run, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "Seconds waited for process" in line and "0 of 3,600" in line
            process.terminate()
            assert "Continue with: stillhouse label" in process.stderr.read()
            assert process.wait(timeout=30) == 130


def started(run: list[str], folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(run, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["by itself", "by kill -9"])
def test_of_three_processes_one_labels_one_leaves_and_one_takes_its_turn(
    api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path, ends: str
) -> None:
    prompts = [f"Name number {number}." for number in range(60)]
    with running_stand_in(latency=0.05) as server:
        stats = server.stats
        recipe = api_recipe(server.base_url, prompts, concurrency=CONCURRENCY, shard_size=20)
        run = command(recipe_file(recipe))
        with started(run, tmp_path) as first:
            until(lambda: stats.billed_answers >= 10, first)
            server.server.latency = 8.0  # a pause, in which the others come
            with started([*run, "--set", "dataset.when_busy=wait"], tmp_path) as waiting:
                assert waiting.stderr is not None
                assert f"Seconds waited for process {first.pid} on " in waiting.stderr.readline()
                left = ended(run, tmp_path)
                assert left.returncode == 1
                assert f"being written by another run (process {first.pid} on " in left.stderr
                billed = dict(stats.billed)
                assert len(billed) < len(prompts)
                server.server.latency = 0.05
                if ends == "by kill -9":
                    first.kill()
                told = json.loads(waiting.communicate(timeout=120)[0])
                assert waiting.returncode == 0
            assert first.wait(timeout=60) == (0 if ends == "by itself" else -signal.SIGKILL)
        assert versions(dataset_folder(recipe.dataset)) == [1]
        assert told["rows"]["train"] + told["rows"]["validation"] == len(prompts)
        if ends == "by itself":
            assert told["message"] == "nothing to do: api/v001 already has answers to all 60 prompts"
            assert dict(stats.billed) == dict.fromkeys(prompts, 1)
        else:
            assert told["fresh"] and told["reused"] > 0
            assert stats.billed_answers - len(prompts) <= CONCURRENCY
