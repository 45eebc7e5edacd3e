"""A sweep as flows: one task run a student, several at a time where asked, and its report as an artifact."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import TrainingError
from stillhouse.evaluation.sweep.evaluate import SweepEvaluation
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.flows import PREFECTS_WARNINGS
from tests.flows.test_flows import artifact, task_names
from tests.flows.test_launch import own_process
from tests.held_trainings import hold_at_first_checkpoint, resume_when_told_to_end
from tests.stages.test_sweep import LAYERS, trainings_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    PREFECTS_WARNINGS,
]


@pytest.fixture
def swept(tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]) -> Callable[..., Path]:
    """Writes a recipe with a sweep; keyword arguments are arguments of the training."""

    def write(sweep: dict[str, Any], **train: Any) -> Path:
        file = recipe_file(tiny_recipe())
        raw = yaml.safe_load(file.read_text())
        raw["student"]["train"] |= train
        file.write_text(yaml.safe_dump(raw | {"sweep": sweep}))
        return file

    return write


def test_the_run_flow_has_a_task_run_a_student_and_shows_the_report(swept: Callable[..., Path]) -> None:
    from stillhouse_flows.run import run_flow

    recipe = str(swept({LAYERS: [2, 1]}))
    first = run_flow(recipe)
    assert [(one.label, one.trained) for one in first.students] == [("2 layers", True), ("1 layer", True)]
    assert isinstance(first.evaluation, SweepEvaluation)
    assert asyncio.run(task_names("distill")) == ["train 1 layer", "train 2 layers"]
    shown = asyncio.run(artifact("sweep-test"))
    assert f"({first.evaluation.files.html.resolve().as_uri()})" in shown
    assert "| 2 layers |" in shown
    assert "| 1 layer |" in asyncio.run(artifact("students-test"))
    again = run_flow(recipe)
    assert [one.trained for one in again.students] == [False, False]
    assert not again.evaluation.fresh


def test_several_at_a_time(swept: Callable[..., Path], tmp_path: Path) -> None:
    from stillhouse_flows.distill import distill_flow
    from stillhouse_flows.label import label_flow

    recipe = str(swept({LAYERS: [3, 2, 1], "at_a_time": 2}))
    asyncio.run(label_flow(recipe))
    folder = tmp_path / "students/test-layers-3"
    folder.mkdir(parents=True)
    (folder / "untrained").write_text("a file where a folder should be")
    with pytest.raises(TrainingError, match="sweep, 3 layers: the training exited with status 1"):
        distill_flow(recipe)
    (folder / "untrained").unlink()
    results = distill_flow(recipe)
    assert [(one.label, one.trained) for one in results] == [
        ("3 layers", True),
        ("2 layers", False),  # one that fails keeps no other from its end
        ("1 layer", False),
    ]
    assert asyncio.run(task_names("distill")) == ["train 1 layer", "train 2 layers", "train 3 layers"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_flow_that_is_stopped_ends_its_trainings_and_goes_on(
    swept: Callable[..., Path], tmp_path: Path, stop: signal.Signals
) -> None:
    from stillhouse_flows.distill import distill_flow
    from stillhouse_flows.label import label_flow

    often = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 12}
    recipe = swept({LAYERS: [2, 1], "at_a_time": 2}, **often)
    asyncio.run(label_flow(str(recipe)))
    flow = own_process("-m", "stillhouse", "distill", str(recipe), "--flow")

    students = [tmp_path / "students/test-layers-2", tmp_path / "students/test-layers-1"]
    held = hold_at_first_checkpoint(students, lambda: flow.poll() is None)
    assert len(held) == 2, flow.communicate()
    flow.send_signal(stop)
    resume_when_told_to_end(held)
    flow.communicate(timeout=120)
    while trainings_of(recipe):
        time.sleep(0.05)
    assert not list((tmp_path / "students").glob("*/white-box"))
    assert [one.trained for one in distill_flow(str(recipe))] == [True, True]
