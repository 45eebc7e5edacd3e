"""From a model that never ends its answers to what the report, the card and the terminal say of it."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.cli.results import print_report, report_json
from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.evaluate import EvaluationResult, evaluate
from stillhouse.evaluation.report.answer_warnings import warnings
from stillhouse.evaluation.results import Interval
from stillhouse.evaluation.sweep.evaluate import evaluate_sweep
from stillhouse.labelling.engine import label
from stillhouse.models.load import load_weights
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.stages import distill_students
from stillhouse.student.training.train import distill
from tests.conftest import MakeRecipe, make_tiny_model

END, SPECIAL = 0, 4  # the end token, and how many tokens are none of text


def change(folder: Path, edit: Callable[[torch.nn.Module], None]) -> None:
    model = load_weights(folder, dtype="float32")
    with torch.no_grad():
        edit(model)
    model.save_pretrained(folder)


def end_at_once(model: torch.nn.Module) -> None:
    """One channel alone decides, every token has about the same of it, and the end token has the most."""
    model.model.norm.weight.zero_()
    model.model.norm.weight[0] = 0.3
    model.model.embed_tokens.weight[:, 0] = 5
    model.model.embed_tokens.weight[END, 0] = 6
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0


def never_end(model: torch.nn.Module) -> None:
    """Every token of text has more of that channel than those that are none."""
    model.model.embed_tokens.weight[:SPECIAL, 0] = 4


@pytest.fixture
def ends_at_once(tiny_recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """Makes recipes whose teacher ends every answer at once, and so do its students."""
    teacher = make_tiny_model(tmp_path / "teacher")
    change(teacher, end_at_once)
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    student = {
        "init": {"from": "teacher", "layers": [0, 3]},
        "train": {"max_steps": 1, "learning_rate": 1e-6, "per_device_train_batch_size": 4},
    }
    evaluate = parts["evaluate"] | {"baselines": ["untrained"]}

    def make(**more: Any) -> Recipe:
        given = {"teacher": parts["teacher"] | {"model": str(teacher)}, "student": student, "evaluate": evaluate}
        return tiny_recipe(**given | more)

    return make


@pytest.fixture
def evaluated(ends_at_once: MakeRecipe) -> Callable[[], EvaluationResult]:
    """Evaluates a student as its folder then is."""
    recipe = ends_at_once()
    assert recipe.student is not None
    dataset: Dataset = asyncio.run(label(recipe)).dataset
    distill(recipe, recipe.student, dataset)

    def run() -> EvaluationResult:
        shutil.rmtree(recipe.evaluate.reports, ignore_errors=True)
        assert recipe.student is not None
        return evaluate(recipe, recipe.student, dataset)

    return run


def test_a_student_that_never_ends_is_called_broken_wherever_it_is_shown(
    evaluated: Callable[[], EvaluationResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "students/test/white-box"
    sound = evaluated()
    assert warnings(sound.report) == []
    assert [row.answer_quality and row.answer_quality.cut for row in sound.report.models] == [Interval(0, 0, 0)] * 3
    assert "Warning" not in (folder / "README.md").read_text()
    print_report(sound)
    assert "WARNING" not in capsys.readouterr().out

    change(folder, never_end)
    change(tmp_path / "students/test/untrained", never_end)
    broken = evaluated()
    said = "This student is broken: 100 % of its answers reach the token limit (its teacher: 0 %)."
    assert warnings(broken.report) == [said]
    teacher, untrained, student = (row.answer_quality for row in broken.report.models)
    assert teacher is not None
    assert untrained is not None
    assert student is not None
    assert student.cut == Interval(1, 1, 1)
    assert student.tokens == Interval(12, 12, 12)
    assert teacher.tokens == Interval(1, 1, 1)  # the end token alone
    assert teacher.empty == Interval(1, 1, 1)
    assert broken.files.markdown.read_text().startswith(f"# test\n\n**{said}** ")
    assert said.replace(" %", "\N{NO-BREAK SPACE}%") in broken.files.html.read_text()
    card = (folder / "README.md").read_text()
    assert f"# test: white-box student\n\n> **Warning.** {said}\n" in card
    assert "| **white-box student** | 0.0 % | 100.0 % | 0.0 % | 0.0 % | 12.0 |" in card
    assert "Warning" not in (tmp_path / "students/test/untrained/README.md").read_text()  # it has learnt nothing
    print_report(broken)
    shown = capsys.readouterr().out
    assert shown.index(f"WARNING  {said}") < shown.index("KL/token") < shown.index("Quality of the answers")
    assert report_json(broken)["warnings"] == [said]
    stored = json.loads(broken.files.json.read_text())
    assert stored["models"][-1]["answer_quality"]["from_teacher"]["cut"] == {"mean": 1, "low": 1, "high": 1}


def test_a_sweep_says_which_student_is_broken_and_its_card_says_so_alone(
    ends_at_once: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ends_at_once(sweep={"student.init.layers": [[0, 1, 3], [0, 3]]})
    dataset = asyncio.run(label(recipe)).dataset
    sound, broken = (Path(one.folder) for one in distill_students(recipe))
    change(broken, never_end)
    result = evaluate_sweep(recipe, dataset)
    said = "layers [0,3] is broken: 100 % of its answers reach the token limit (its teacher: 0 %)."
    assert result.report.choice.front == ("layers [0,1,3]",)
    assert result.files.markdown.read_text().startswith(f"# test: a sweep\n\n**{said}** ")
    assert "Warning" not in (sound / "README.md").read_text()
    card = (broken / "README.md").read_text()
    assert (
        ": white-box student\n\n> **Warning.** This student is broken: 100 % of its answers reach the token limit"
        in card
    )
    assert "| **layers [0,3]** | 0.0 % | 100.0 % | 0.0 % | 0.0 % | 12.0 |" in card
    print_report(result)
    shown = capsys.readouterr().out
    assert shown.index(f"WARNING  {said}") < shown.index("KL/token") < shown.index("Quality of the answers")
    assert report_json(result)["warnings"] == [said]
    assert any("A student is broken if" in note for note in result.report.notes)
