"""A teacher that learns along: both are made by one training, resumed, found again, and measured."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.cli.main import app
from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_finetune, check_labels, check_run
from stillhouse.stages.stages import finetune_stage, run_stages
from stillhouse.student.finished.folder import read_card
from tests.stages.conftest import TRAIN, Tuned
from tests.student.training.test_train import power_cut_at, same, weights

STUDENT: dict[str, Any] = {
    "init": {"from": "teacher", "layers": 2, "choose": "even"},
    "labels": "live",
    "loss": {"kind": "forward-kl", "temperature": 1.0, "weight": 1.0, "cross_entropy_weight": 0.5},
    "train": TRAIN,
}


def along(tuned: Tuned, student: Any = None, **finetune: Any) -> Recipe:
    """A recipe whose teacher learns along; keyword arguments are settings of `teacher.finetune`."""
    settings = {"along": True, "train": {"learning_rate": 0.003}, **finetune}
    return tuned(student={**STUDENT, **(student or {})}, **settings)


def folders(recipe: Recipe) -> tuple[Path, Path]:
    """The teacher's and the student's."""
    return Path(recipe.teacher.labelling_model), Path(recipe.students) / recipe.name / "white-box"


@pytest.mark.slow
def test_one_run_makes_both_and_a_second_one_nothing(tuned: Tuned) -> None:
    recipe = along(tuned, {"train": {**TRAIN, "num_train_epochs": 10}}, student_weight=0.5)
    check_run(recipe)
    with pytest.raises(TeacherUnavailable, match="Run `stillhouse finetune`"):
        check_labels(recipe)
    first = run_stages(recipe)
    assert first.finetuned is not None
    assert first.finetuned.trained
    assert [one.trained for one in first.students] == [True, True, False]  # gold, black-box; white-box was made before
    teacher, student = (read_card(folder) for folder in folders(recipe))
    assert teacher is not None
    assert student is not None
    assert (teacher.variant, teacher.is_teacher, student.variant, student.is_teacher) == (
        "gold",
        True,
        "white-box",
        False,
    )
    assert teacher.dataset == student.dataset == "words-gold/v001"
    assert teacher.steps == student.steps > 0
    for card in (teacher, student):
        fell = [step.eval_cross_entropy for step in card.log if step.eval_cross_entropy is not None]
        assert fell[-1] < fell[0]
    assert teacher.held_out is not None
    assert teacher.held_out.eval_loss == teacher.held_out.eval_cross_entropy
    roles = [model.role for model in first.evaluation.report.models]
    assert roles[0] == "teacher"
    assert roles[-1] == "white-box student"
    again = run_stages(recipe)
    assert again.finetuned is not None
    assert not again.finetuned.trained
    assert not any(one.trained for one in again.students)
    assert not again.evaluation.fresh


def test_without_the_student_the_teacher_is_the_one_that_is_fine_tuned_alone(tuned: Tuned, tmp_path: Path) -> None:
    unclipped = {**TRAIN, "max_grad_norm": 0.0}  # clipped together, the gradients of one would change the other's
    finetune_stage(tuned(train=unclipped, root=str(tmp_path / "alone")))
    recipe = along(tuned, {"train": unclipped}, train={})
    finetune_stage(recipe)
    alone, beside = weights(tmp_path / "alone/test/gold"), weights(folders(recipe)[0])
    assert alone.keys() == beside.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(beside[name], weight, rtol=1e-4, atol=1e-5)
    assert not same(alone, weights_of_start(recipe))


def weights_of_start(recipe: Recipe) -> dict[str, torch.Tensor]:
    return weights(Path(recipe.teacher.model))


def test_a_teacher_with_a_learning_rate_of_0_stays_as_it_is(tuned: Tuned) -> None:
    recipe = along(tuned, train={"learning_rate": 0.0})
    finetune_stage(recipe)
    assert same(weights(folders(recipe)[0]), weights_of_start(recipe))


def test_the_command_tells_of_both_and_checks_both(
    tuned: Tuned, recipe_file: Callable[[Recipe], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError, match=r"student\.loss\.kind is 'forward'"):
        check_finetune(along(tuned, {"loss": {"kind": "forward"}}))
    recipe = along(tuned)
    app(["finetune", str(recipe_file(recipe)), "--no-flow", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert [told[one]["folder"] for one in ("teacher", "student")] == [str(folder) for folder in folders(recipe)]
    app(["finetune", str(recipe_file(recipe)), "--no-flow"], standalone_mode=False)
    first, second = capsys.readouterr().out.replace("\n", " ").split("student  ")
    assert first.startswith("teacher  ")
    assert "already trained" in first and "already trained" in second


@pytest.mark.parametrize("student_weight", [0.0, 0.5])
def test_killed_it_goes_on_to_the_teacher_and_the_student_of_an_unbroken_run(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student_weight: float
) -> None:
    steps = {"train": {**TRAIN, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1}}
    recipe = along(tuned, steps, student_weight=student_weight)
    finetune_stage(recipe)
    unbroken = [weights(folder) for folder in folders(recipe)]
    for folder in folders(recipe):
        shutil.rmtree(folder.parent)
    with power_cut_at(4, monkeypatch):
        finetune_stage(recipe)
    assert [read_card(folder) for folder in folders(recipe)] == [None, None]
    done: list[int] = []
    finetune_stage(recipe, lambda what, number, _: done.append(number) if "Training" in what else None)
    assert min(done) > 3
    assert all(same(one, weights(folder)) for one, folder in zip(unbroken, folders(recipe), strict=True))


def test_if_one_of_both_is_gone_both_are_made_again(tuned: Tuned) -> None:
    recipe = along(tuned)
    finetune_stage(recipe)
    for gone in folders(recipe):
        before = [weights(folder) for folder in folders(recipe)]
        shutil.rmtree(gone)
        finetune_stage(recipe)
        assert all(same(one, weights(folder)) for one, folder in zip(before, folders(recipe), strict=True))


def test_each_is_in_the_key_of_the_other(tuned: Tuned) -> None:
    recipe = along(tuned)
    finetune_stage(recipe)
    keys = [read_card(folder) for folder in folders(recipe)]
    others = (
        along(tuned, {"loss": {"kind": "reverse-kl"}}),
        along(tuned, train={"learning_rate": 0.004}),
        along(tuned, student_weight=0.1),
    )
    for other in others:
        with pytest.raises(TeacherUnavailable, match="with other settings or other references"):
            check_labels(other)
        again = finetune_stage(other)
        assert again is not None
        assert again.trained
        found = [read_card(folder) for folder in folders(other)]
        assert all(one and two and one.key != two.key for one, two in zip(keys, found, strict=True))


def test_the_teacher_labels_afterwards(tuned: Tuned) -> None:
    recipe = along(tuned)
    finetune_stage(recipe)
    check_labels(recipe)
    assert asyncio.run(label(recipe)).dataset.manifest.teacher.model == recipe.teacher.labelling_model


@pytest.mark.parametrize(
    ("student", "finetune", "setting"),
    [
        ({"labels": "stored"}, {}, "student.labels"),
        ({"mode": "black-box"}, {}, "student.labels"),
        ({"lora": {"r": 4}}, {}, "student.lora"),
        ({"train": {**TRAIN, "fsdp": True}}, {}, "student.train.fsdp"),
        ({"init": {"from": "teacher", "layers": 2}}, {}, "student.init.choose"),
        ({}, {"config": {"num_hidden_layers": 3}}, "student.init.from"),
        ({"data": [{"dataset": "words"}]}, {}, "student.data"),
        ({}, {"train": {"num_train_epochs": 3}}, "teacher.finetune.train.num_train_epochs"),
        ({}, {"packing": True}, "teacher.finetune.packing"),
        ({}, {"early_stopping": {}}, "teacher.finetune.early_stopping"),
        ({}, {"along": False, "student_weight": 0.5}, "teacher.finetune.student_weight"),
    ],
    ids=str,
)
def test_what_they_cannot_do_together_is_refused(
    tuned: Tuned, student: dict[str, Any], finetune: dict[str, Any], setting: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        along(tuned, student, **finetune)
    assert caught.value.setting == setting
