"""Rounds under faults: a teacher that goes away, a disk that is full, two runs at once."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.errors import StorageFailed, StudentBusy, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.stages import distill_students
from stillhouse.teachers.transformers import TransformersTeacher
from tests.conftest import MakeRecipe
from tests.labelling.test_durability import FullFrom
from tests.stages.rounds.test_rounds import on_policy, rollouts, sent_to
from tests.student.finished.test_one_writer import written_meanwhile

pytestmark = pytest.mark.slow


def before_the_rounds(recipe: Recipe) -> None:
    """Label, and train the student that the rounds begin with."""
    asyncio.run(label(recipe))
    distill_students(recipe, only="white-box")


def test_a_teacher_that_goes_away_is_asked_for_the_rest_alone(
    tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = on_policy(tiny_recipe, rounds=1, prompts=6)
    before_the_rounds(recipe)
    answered: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(TransformersTeacher, "answer", gone_after(1, answered))
        with pytest.raises(TeacherUnavailable, match="it is gone"):
            distill_students(recipe)
    assert 0 < len(answered) < 6
    asked = sent_to(monkeypatch)
    distill_students(recipe)
    assert len(asked) == 6 - len(answered)
    assert not {*asked} & {*answered}
    assert rollouts(recipe, 1).manifest.rows == {"train": 6}


def gone_after(calls: int, answered: list[str]) -> Callable[..., Any]:
    """A teacher's `answer` that notes what it answered, and fails after some calls."""
    real = TransformersTeacher.answer
    left = [calls]

    async def answer(self: TransformersTeacher, requests: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise TeacherUnavailable("it is gone")
        answers = await real(self, requests)
        answered.extend(request.key for request in requests)
        return answers

    return answer


def test_a_disk_that_is_full_again_and_again_costs_no_score(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = on_policy(tiny_recipe, rounds=1)
    before_the_rounds(recipe)
    asked = sent_to(monkeypatch)
    full = 0
    for call in range(1, 400, 9):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FullFrom(call))
            try:
                distill_students(recipe)
            except StorageFailed:
                full += 1
                continue
        break
    assert full > 3
    assert len(asked) == len(set(asked)) == 4
    broken = load_file(tmp_path / "students/test/on-policy/model.safetensors")
    unbroken = load_file(tmp_path / "students/test/rounds/round-001/white-box/model.safetensors")
    assert all(torch.equal(weight, broken[name]) for name, weight in unbroken.items())


def test_two_runs_at_once_are_refused(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = on_policy(tiny_recipe, rounds=1)
    before_the_rounds(recipe)
    with written_meanwhile(tmp_path / "students/test"), pytest.raises(StudentBusy):
        distill_students(recipe)
    assert not (tmp_path / "labels/words-rollouts").exists()
