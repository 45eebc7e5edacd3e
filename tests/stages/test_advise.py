"""What is said of distilling beforehand: few requests, none of them asked again, and an honest verdict."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.errors import DatasetRefused, RecipeError
from stillhouse.evaluation.metrics.base import open_metrics
from stillhouse.evaluation.results import Interval
from stillhouse.labelling.engine import label
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.evaluate import MetricSettings
from stillhouse.stages import advise as module
from stillhouse.stages.advise import Advice, advise
from tests.conftest import MakeRecipe
from tests.stages.rounds.test_rounds import sent_to

GIVEN: dict[str, Any] = {
    "prompts": 900,
    "references": 300,
    "held_out": 80,
    "asked": 60,
    "metric": "exact match",
    "lower_is_better": False,
    "percent": True,
    "digits": 1,
    "teacher": Interval(0.6, 0.5, 0.7),
    "without_teacher": Interval(0.4, 0.3, 0.5),
    "difference": Interval(0.2, 0.1, 0.3),
    "steps": 60,
}


@pytest.mark.slow
def test_a_few_prompts_are_asked_and_labelling_asks_only_for_the_others(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 2)
    recipe = tiny_recipe(evaluate={"metrics": ["rouge"], "reports": str(tmp_path / "reports")})
    asked = sent_to(monkeypatch)
    advice = advise(recipe)
    assert 0 < advice.asked == len(asked) < 10
    assert advice.teacher is not None and advice.without_teacher is not None and advice.steps == 2
    assert len(advice.lines()) == 5
    again = advise(recipe)
    assert len(asked) == advice.asked
    assert again == advice
    assert estimate_labelling(recipe).answered == advice.asked
    labelled = asyncio.run(label(recipe)).dataset
    assert len(asked) == len(set(asked)) == sum(labelled.manifest.rows.values())
    assert labelled.manifest.parents == ("words-advise/v001",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "The teacher is better by 20.0 % [10.0, 30.0]"),
        ({"difference": Interval(-0.2, -0.3, -0.1)}, "better by 20.0 % [10.0, 30.0]: do not distil this teacher"),
        ({"difference": Interval(0.05, -0.05, 0.1)}, "cannot be told apart"),
        ({"without_teacher": None, "difference": None, "references": 2}, "has only the teacher to learn from"),
        ({"teacher": None, "without_teacher": None, "difference": None}, "nothing can be said"),
    ],
)
def test_the_verdict(changes: dict[str, Any], words: str) -> None:
    lines = Advice(**{**GIVEN, **changes}).lines()
    assert any(words in line for line in lines)
    assert len(lines) <= 5
    assert lines[0].startswith("900 prompts to train on")


def test_an_error_rate_is_better_if_it_is_lower() -> None:
    (metric,) = open_metrics([MetricSettings(kind="edit-distance")])
    good, bad = np.array([[0.0, 5.0]] * 20), np.array([[4.0, 5.0]] * 20)
    assert metric.metric.lower_is_better
    assert module._difference(metric, good, bad).low > 0
    assert module._difference(metric, bad, good).high < 0


def test_without_references_the_teacher_is_not_asked(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "plain.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"Say {number}."}) + "\n" for number in range(12)))
    asked = sent_to(monkeypatch)
    recipe = tiny_recipe(prompts={"source": str(source), "holdout": 0.3}, evaluate={"baselines": []})
    assert "nothing can be said" in advise(recipe).lines()[1]
    assert asked == []


def test_a_teacher_that_answers_nothing_is_refused(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scripted_recipe(evaluate={"reports": str(tmp_path / "reports")})
    held_out = [one for one in read_prompts(recipe.prompts) if split_of(one, recipe.prompts.holdout) == "validation"]
    teacher = {"kind": "scripted", "options": {"vocabulary": 64, "refuse": [one.text for one in held_out]}}
    student = {"init": {"model": "unused"}, "mode": "black-box"}
    refusing = scripted_recipe(teacher=teacher, student=student, evaluate={"reports": str(tmp_path / "reports")})
    with pytest.raises(DatasetRefused, match="answered none of .*stillhouse datasets show words-advise"):
        advise(refusing)


def test_a_recipe_without_a_student_is_refused(tiny_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="student: the recipe has none"):
        advise(tiny_recipe(student=None))
