"""What a Ray worker raises: an error of the code is told at once, and only a lost worker is one to try again."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from stillhouse.errors import RecipeError, WorkerLost
from stillhouse.labelling.runners import ray as ray_cluster
from stillhouse.recipe.label import RunnerSettings

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, configure_logging=False, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def labelled_by(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand a part to a cluster whose workers do this instead of labelling."""
    monkeypatch.setattr(ray_cluster, "_label", task)
    asyncio.run(ray_cluster.RayCluster(RunnerSettings(kind="ray")).label("recipe.yaml", "words part-1"))


def test_an_error_of_the_code_is_raised_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(recipe: str, folder: str) -> None:
        raise TypeError("unsupported operand of a plug-in's filter")

    with pytest.raises(TypeError) as raised:
        labelled_by(defect, monkeypatch)
    assert str(raised.value) == "unsupported operand of a plug-in's filter"
    assert "in defect" in raised.value.__notes__[0] and "words part-1" in raised.value.__notes__[0]


def test_a_worker_whose_process_is_gone_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(recipe: str, folder: str) -> None:
        import os

        os._exit(1)

    monkeypatch.setattr(ray_cluster, "_MAX_RETRIES", 0)
    with pytest.raises(WorkerLost, match="Ray lost the task words part-1"):
        labelled_by(killed, monkeypatch)


def test_an_error_of_ours_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="a wrong key"):
        labelled_by(lambda recipe, folder: RecipeError("a wrong key"), monkeypatch)
