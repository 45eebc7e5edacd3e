"""What a recipe's prompts lack is reported with the row, the setting and the fix, before anything is done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import PromptError, RecipeError
from stillhouse.prompts.checks import check_prompts
from stillhouse.recipe.recipe import Recipe, recipe_from
from tests.encoder_decoders import tiny_t5

PREFIXES = {"summarization": {"prefix": "summarize: ", "num_beams": 4}, "other": {"early_stopping": True}}
STUDENT = {"init": {"model": "m"}, "mode": "black-box"}

Make = Callable[..., Recipe]


@pytest.fixture
def recipe(tmp_path: Path) -> Make:
    """Makes recipes of these rows; keyword arguments replace top-level parts."""

    def make(rows: list[dict[str, Any]], template: str = "{{ text }}", **parts: Any) -> Recipe:
        source = tmp_path / "p.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "p.j2").write_text(template)
        prompts = {"source": str(source), "template": str(tmp_path / "p.j2"), **parts.pop("prompts", {})}
        return recipe_from(
            {"name": "r", "prompts": prompts, "teacher": {"kind": "scripted"}, "dataset": {"name": "d"}, **parts}, "r"
        )

    return make


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 that was taught to summarise by a prefix."""
    return tiny_t5(tmp_path_factory.mktemp("models") / "t5", task_specific_params=PREFIXES)


HALF = [{"text": "a", "reference": "A"}, {"text": "b", "reference": " "}, {"text": "c"}]


@pytest.mark.parametrize(
    ("parts", "reason", "fix"),
    [
        (
            {"teacher": {"kind": "transformers", "model": "", "finetune": {"config": {}}}},
            "teacher.finetune is set",
            "remove teacher.finetune",
        ),
        ({"student": {**STUDENT, "mode": "gold"}}, "student.mode is 'gold'", "set student.mode to 'black-box'"),
        (
            {"student": STUDENT, "evaluate": {"baselines": ["gold"]}},
            "evaluate.baselines has 'gold'",
            "remove it from evaluate.baselines",
        ),
        ({"label": {"mode": "score"}}, "label.mode is 'score'", "set label.mode to 'generate'"),
    ],
)
def test_a_missing_reference_names_its_row(recipe: Make, parts: dict[str, Any], reason: str, fix: str) -> None:
    with pytest.raises(PromptError) as caught:
        check_prompts(recipe(HALF, **parts))
    error = caught.value
    assert (error.setting, error.value) == ("prompts.reference", None)
    assert error.problem.startswith(f"{reason}, so every row needs a reference, and row 2 of ")
    assert error.fix is not None and error.fix.startswith("fill its column 'reference', set prompts.reference")
    assert error.fix.endswith(f"or {fix}")
    check_prompts(recipe(HALF, **parts, prompts={"limit": 1}))


def test_metrics_want_some_references_and_not_all(recipe: Make) -> None:
    metrics = {"evaluate": {"metrics": ["exact-match"]}}
    check_prompts(recipe(HALF, **metrics))
    with pytest.raises(PromptError, match=r"evaluate\.metrics is set, .*no row of .* Set prompts\.reference"):
        check_prompts(recipe(HALF[1:], **metrics))


def test_where_nothing_is_asked_of_the_prompts_they_are_not_read(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(HALF)
    (tmp_path / "p.jsonl").unlink()
    check_prompts(asked)


@pytest.mark.parametrize("settings", [{}, {"finetune": {}}], ids=["as it is", "fine-tuned first"])
def test_a_prompt_without_the_task_prefix_is_refused(recipe: Make, t5: Path, settings: dict[str, Any]) -> None:
    rows = [{"text": "a long story", "reference": "a story"}]
    teacher = {"kind": "transformers", "model": str(t5), **settings}
    with pytest.raises(RecipeError) as caught:
        check_prompts(recipe(rows, teacher=teacher))
    for words in ("prompts.template is '", "'a long story'", "'summarize: '", "set teacher.task_prefix"):
        assert words in str(caught.value)
    check_prompts(recipe(rows, "summarize: {{ text }}", teacher=teacher))
    check_prompts(recipe(rows, teacher={**teacher, "task_prefix": ""}))


def test_fresh_weights_know_no_prefix(recipe: Make, t5: Path) -> None:
    rows = [{"text": "a", "reference": "A"}]
    check_prompts(recipe(rows, teacher={"kind": "transformers", "model": str(t5), "finetune": {"config": {}}}))


def test_a_prefix_of_ones_own_is_wanted_of_every_prompt(recipe: Make, t5: Path) -> None:
    teacher = {"kind": "transformers", "model": str(t5), "task_prefix": "say: "}
    check_prompts(recipe(HALF, "say: {{ text }}", teacher=teacher))
    mixed = "{{ 'say: ' if text != 'b' else '' }}{{ text }}"
    with pytest.raises(PromptError, match=r"teacher\.task_prefix is 'say: ': the prompt of row 2 of .* \('b'\)"):
        check_prompts(recipe(HALF, mixed, teacher=teacher))


def test_with_references_of_their_own_the_prompts_need_none(recipe: Make, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"text": "a", "reference": "A"}\n{"text": "b", "reference": "B"}\n')
    tuned = {"kind": "transformers", "model": "", "finetune": {"config": {}}}
    check_prompts(recipe(HALF, teacher=tuned, references={"source": str(gold)}))
    gold.write_text('{"text": "a", "reference": "A"}\n{"text": "b"}\n')
    with pytest.raises(
        PromptError,
        match=r"references\.reference is null: .*row 2 of .*gold\.jsonl has none.* set references\.reference",
    ):
        check_prompts(recipe(HALF, teacher=tuned, references={"source": str(gold)}))


def test_who_is_forced_along_references_needs_them_in_the_prompts_all_the_same(recipe: Make, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"text": "a", "reference": "A"}\n')
    student = {"student": {**STUDENT, "mode": "gold"}, "label": {"mode": "score"}, "references": {"source": str(gold)}}
    with pytest.raises(PromptError, match=r"label\.mode is 'score', .*row 2 of .*p\.jsonl has none"):
        check_prompts(recipe(HALF, **student))
