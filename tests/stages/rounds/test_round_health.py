"""A student that collapses ends the rounds; nothing of that round is scored, and the best student before is kept."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import versions
from stillhouse.labelling.engine import label
from stillhouse.stages.rounds import run as run_module
from stillhouse.stages.rounds.health import StudentCollapsed, refuse_collapsed, written_of
from stillhouse.stages.stages import distill_students
from stillhouse.student.finished.rounds import Written
from tests.conftest import MakeRecipe
from tests.stages.rounds.test_rounds import on_policy

FINE = Written(rollouts=10, tokens=8, repeats=0.1, cut=0.0, empty=0.0)


@pytest.mark.parametrize(
    ("written", "first", "collapsed"),
    [
        (replace(FINE, repeats=0.6), FINE, True),
        (replace(FINE, empty=0.6), FINE, True),
        (replace(FINE, repeats=0.5), FINE, False),
        (replace(FINE, repeats=0.8), replace(FINE, repeats=0.7), False),  # it began so
        (FINE, FINE, False),
    ],
)
def test_most_of_it_broken_and_clearly_more_than_at_first(written: Written, first: Written, collapsed: bool) -> None:
    if not collapsed:
        refuse_collapsed(2, written, first)
        return
    with pytest.raises(StudentCollapsed, match=r"round 2: [67]0% .* \(10% in the first round\)"):
        refuse_collapsed(2, written, first)


def test_a_collapse_ends_the_rounds(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = on_policy(tiny_recipe, rounds=4)
    asyncio.run(label(recipe))
    seen: list[Path] = []

    def worse_in_the_third(file: Path) -> Written:
        seen.append(file)
        return replace(written_of(file), repeats=0.9 if len(seen) == 3 else 0.1, empty=0.0)

    monkeypatch.setattr(run_module, "written_of", worse_in_the_third)
    with caplog.at_level(logging.WARNING):
        *_, last = distill_students(recipe)
    assert "round 3: 90% of what the student writes repeats itself or is empty (10% in the first round)" in caplog.text
    assert "set a lower on_policy.train.learning_rate" in caplog.text
    assert [one.number for one in last.card.rounds] == [1]  # the student of the second had collapsed
    assert versions(tmp_path / "labels/words-rollouts") == [1, 2]


def test_patience_ends_the_rounds(tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = on_policy(tiny_recipe, rounds=5, patience=1)
    asyncio.run(label(recipe))
    figures = iter([0.5, 0.4, 0.6, 0.3, 0.2])
    known: dict[str, float] = {}

    def kl(student: Any) -> float:
        return known.setdefault(student.folder, next(figures) if student.folder not in known else 0.0)

    monkeypatch.setattr(run_module, "held_out_kl", kl)
    *_, last = distill_students(recipe)
    assert [(one.number, one.kept) for one in last.card.rounds] == [(1, False), (2, True), (3, False)]
