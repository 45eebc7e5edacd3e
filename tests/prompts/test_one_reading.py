"""Labelling reads each row of the source once and renders it once, whatever the recipe wants of its prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.errors import RecipeFaults, TeacherUnavailable
from stillhouse.prompts import load
from stillhouse.prompts.templates import PromptTemplate
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_labels
from tests.conftest import WORDS, MakeRecipe

RecipeFile = Callable[[Recipe], Path]
ONCE = Counter(dict.fromkeys(WORDS, 1))
GOLD = {"init": {"model": "tiny"}, "mode": "gold"}
WANTED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "references to score": {"label": {"mode": "score"}},
    "references to measure by": {"evaluate": {"metrics": ["exact-match"]}},
    "a task prefix": {"teacher": {"kind": "scripted", "task_prefix": "Explain "}},
    "references to learn from": {"student": GOLD},
}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts how often each word's row is read from the source; fails if it is not rendered as often."""
    rows, rendered = Counter[str](), Counter[str]()
    source_rows, render = load.source_rows, PromptTemplate.__call__

    def counted_rows(settings: PromptSettings) -> Iterator[Mapping[str, Any]]:
        for row in source_rows(settings):
            rows[row["word"]] += 1
            yield row

    def counted_render(self: PromptTemplate, row: Mapping[str, Any], where: str) -> str:
        rendered[row["word"]] += 1
        return render(self, row, where)

    monkeypatch.setattr(load, "source_rows", counted_rows)
    monkeypatch.setattr(PromptTemplate, "__call__", counted_render)
    yield rows
    assert rendered == rows


@pytest.mark.parametrize("wanted", WANTED)
def test_label_reads_and_renders_each_prompt_once(
    scripted_recipe: MakeRecipe,
    recipe_file: RecipeFile,
    monkeypatch: pytest.MonkeyPatch,
    read: Counter[str],
    wanted: str,
) -> None:
    monkeypatch.setattr("stillhouse.stages.checks._check_students", lambda *_: None)  # they load models and no prompts
    file = recipe_file(scripted_recipe(**WANTED[wanted]))
    done = CliRunner().invoke(app, ["label", "--no-flow", str(file)])
    assert done.exit_code == 0, done.output
    assert read == ONCE


@pytest.mark.parametrize("wanted", ["references to score", "references to learn from"])
def test_a_prompt_that_lacks_what_the_recipe_wants_is_refused_before_anything_is_sent(
    scripted_recipe: MakeRecipe,
    recipe_file: RecipeFile,
    word_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
) -> None:
    monkeypatch.setattr("stillhouse.stages.checks._check_students", lambda *_: None)
    with word_prompts.open("a") as lines:
        lines.write('{"word": "anchor"}\n')
    file = recipe_file(scripted_recipe(**WANTED[wanted]))
    for command in (["plan"], ["label", "--no-flow"]):
        done = CliRunner().invoke(app, [*command, str(file)])
        assert done.exit_code == 2
        assert "so every row needs a reference, and row 13 of" in " ".join(done.stderr.split())
    assert not (tmp_path / "labels").exists()


def test_a_fine_tuned_teacher_is_found_by_its_references_which_are_read_once(
    tiny_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path, read: Counter[str]
) -> None:
    """Its folder is named by their hash; labelling reads the prompts after that."""
    teacher = {"kind": "transformers", "model": str(tiny_model)}
    finetune = {"train": {"max_steps": 1}, "root": str(tmp_path / "teachers")}
    recipe = tiny_recipe(teacher=teacher | {"task_prefix": "", "finetune": finetune}, student=None)
    with pytest.raises(TeacherUnavailable, match="not been fine-tuned yet"):
        check_labels(recipe)
    assert read == ONCE + Counter(WORDS[:1])  # the chat template is tried on the first prompt


def test_a_fault_of_the_recipe_is_reported_with_those_of_its_prompts(
    scripted_recipe: MakeRecipe, word_prompts: Path
) -> None:
    word_prompts.write_text('{"word": "anchor"}\n')
    recipe = scripted_recipe(label={"mode": "score"}, quality=[{"kind": "lenght"}])
    with pytest.raises(RecipeFaults) as raised:
        check_labels(recipe)
    assert "quality.0.kind is 'lenght'" in str(raised.value)
    assert "row 1 of" in str(raised.value)
