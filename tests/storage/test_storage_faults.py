"""Labelling into a store that is stopped, killed, or finds the store away: nothing is lost, none is paid for twice."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from stillhouse.dataset.store import dataset_folder, open_dataset, versions
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.rows import rows_by_prompt
from tests.s3_server import SeaweedFS, Window
from tests.stand_in import running_stand_in

PROMPTS = [f"Name number {number}." for number in range(60)]
CONCURRENCY = 4


def there(recipe: Recipe, root: str) -> Recipe:
    return recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"root": root})})


def command(recipe: Recipe, folder: Path) -> list[str]:
    file = folder / "recipe.yaml"
    file.write_text(recipe.as_yaml())
    return [sys.executable, "-m", "stillhouse", "label", str(file), "--no-flow", "--json"]


def started(run: list[str], folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(run, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def completed(run: list[str], folder: Path) -> dict[str, Any]:
    with started(run, folder) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def until(condition: Any, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def uploads(window: Window, ending: str) -> list[str]:
    return [key for key in window.appeared() if key.endswith(ending)]


@pytest.mark.slow
def test_killed_in_mid_run_it_goes_on_and_no_shard_is_written_twice(
    s3: Window, s3_root: str, api_recipe: MakeRecipe, tmp_path: Path
) -> None:
    random = Random(7)
    with running_stand_in(latency=0.03) as server:
        recipe = there(api_recipe(server.base_url, PROMPTS, concurrency=CONCURRENCY, shard_size=10), s3_root)
        run = command(recipe, tmp_path)
        kills = 2
        for kill in range(kills):
            with started(run, tmp_path) as process:
                target = 20 * (kill + 1)
                until(lambda target=target: server.stats.billed_answers >= target, process)
                time.sleep(random.uniform(0, 0.05))
                process.kill()
            while server.stats.at_once:
                time.sleep(0.005)
            assert versions(dataset_folder(recipe.dataset)) == []
        result = completed(run, tmp_path)
        assert sum(result["rows"].values()) == len(PROMPTS)
        assert server.stats.billed_answers - len(PROMPTS) <= kills * CONCURRENCY
    dataset = open_dataset(dataset_folder(recipe.dataset))
    assert dataset.problems() == []
    assert set(rows_by_prompt(dataset)) == set(PROMPTS)
    written = uploads(s3, ".parquet")
    assert len(written) == len(set(written)) == len(dataset.manifest.files)  # finished shards were recognised
    assert len(uploads(s3, "manifest.json")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("file", ["00001-of-00006.parquet", "manifest.json"])
def test_killed_while_an_object_is_on_its_way_the_version_does_not_exist(
    s3: Window, s3_root: str, api_recipe: MakeRecipe, tmp_path: Path, file: str
) -> None:
    with running_stand_in() as server:
        recipe = there(api_recipe(server.base_url, PROMPTS, shard_size=10), s3_root)
        recipe = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"holdout": 0.0})})
        run = command(recipe, tmp_path)
        with started(run, tmp_path) as process:

            def kill(request: web.Request) -> int | None:
                if request.method == "PUT" and request.path.endswith(file):
                    process.kill()
                    return 0
                return None

            s3.answer = kill
            process.communicate(timeout=60)
        s3.answer = lambda _: None
        assert process.returncode == -9
        assert versions(dataset_folder(recipe.dataset)) == []
        asked = server.stats.billed_answers
        result = completed(run, tmp_path)
        assert result["sent"] == len(PROMPTS) - asked
        assert server.stats.billed_answers == len(PROMPTS)
    assert open_dataset(dataset_folder(recipe.dataset)).problems() == []


@pytest.mark.slow
def test_the_server_dies_in_mid_run_and_returns(
    s3: Window,
    s3_root: str,
    seaweed: SeaweedFS,
    api_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweed.endpoint)  # no window: its port is refused while it is away
    with running_stand_in(latency=0.05) as server:
        recipe = there(api_recipe(server.base_url, PROMPTS, concurrency=CONCURRENCY, shard_size=10), s3_root)
        with started(command(recipe, tmp_path), tmp_path) as process:
            until(lambda: server.stats.billed_answers >= 15, process)
            seaweed.kill()
            try:
                time.sleep(3)
                assert process.poll() is None
            finally:
                seaweed.start()
            out, complained = process.communicate(timeout=120)
        assert process.returncode == 0, complained
        assert "Traceback" not in complained
        assert "retrying for" in complained
        assert json.loads(out)["sent"] == len(PROMPTS) == server.stats.billed_answers
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    dataset = open_dataset(dataset_folder(recipe.dataset))
    assert dataset.problems() == []
    assert set(rows_by_prompt(dataset)) == set(PROMPTS)


@pytest.mark.slow
def test_of_two_runs_at_once_one_writes_and_one_is_told(
    s3: Window, s3_root: str, api_recipe: MakeRecipe, tmp_path: Path
) -> None:
    places = [tmp_path / "one", tmp_path / "two"]  # each with a journal of its own: only the store can tell
    for place in places:
        place.mkdir()
    with running_stand_in(latency=0.1) as server:
        recipe = there(api_recipe(server.base_url, PROMPTS, concurrency=CONCURRENCY, shard_size=10), s3_root)
        runs = [started(command(recipe, place), place) for place in places]
        ended = [(process, *process.communicate(timeout=120)) for process in runs]
        assert sorted(process.returncode for process, _, _ in ended) == [0, 1], ended
        (lost,) = [err for process, _, err in ended if process.returncode == 1]
        (won,) = [process for process, _, _ in ended if process.returncode == 0]
        assert "is being written by another run" in lost
        assert f"process {won.pid} on {os.uname().nodename}, since 20" in lost
        assert "label" in lost.partition("since")[2]
        assert "Traceback" not in lost
        assert server.stats.billed_answers == len(PROMPTS)
    assert open_dataset(dataset_folder(recipe.dataset)).problems() == []


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_in_words(
    s3: Window, s3_root: str, api_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with running_stand_in() as server:
        recipe = there(api_recipe(server.base_url, PROMPTS[:10]), s3_root)
        s3.answer = lambda _: 503
        with started(command(recipe, tmp_path), tmp_path) as process:
            _, complained = process.communicate(timeout=60)
        assert process.returncode == 1
        assert f"error: {s3_root}/words".replace("words", recipe.dataset.name) in complained
        assert "run again" in complained
        assert "Traceback" not in complained
        assert server.stats.requests == 0
