"""`evaluate.metrics` from a recipe to its report: who answers what, and what is said where references lack."""

import asyncio
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError
from stillhouse.evaluation.evaluate import evaluate, settings_key
from stillhouse.evaluation.measures.answer_quality import ModelAnswers
from stillhouse.evaluation.measures.measure import _answers
from stillhouse.evaluation.measures.measurement_task import MeasurementTask
from stillhouse.evaluation.measures.models import MeasuredModels, with_answer_quality, with_labels, with_scores
from stillhouse.evaluation.measures.scoring import select_prompts
from stillhouse.evaluation.metrics.base import open_metrics
from stillhouse.evaluation.results import Interval, ModelRow
from stillhouse.labelling.engine import label
from stillhouse.models.generate import generate
from stillhouse.models.load import decode_completion, encode_prompt, load_language_model
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Completion
from stillhouse.stages.checks import check_labels, check_student
from stillhouse.student.training.train import distill
from tests.conftest import WORDS, MakeRecipe
from tests.encoder_decoders import LETTERS, PHONEMES, tiny_t5
from tests.quality.completions import completion

METRICS = ["chrf", "exact-match", {"kind": "edit-distance", "unit": "characters"}]


def held_out(dataset: Dataset) -> list[Completion]:
    return [completion_at(batch, row) for batch in dataset.batches("validation") for row in range(batch.num_rows)]


def settings(recipe: Recipe, **changes: object) -> Recipe:
    evaluate = recipe.evaluate.model_dump() | {"baselines": []} | changes
    return recipe.model_copy(update={"evaluate": EvaluateSettings.model_validate(evaluate)})


def said_alone(folder: Path, rows: list[Completion]) -> list[str]:
    """Each answer with no other prompt beside it."""
    lm = load_language_model(folder)
    prompts = [encode_prompt(lm.tokenizer, row.prompt.messages) for row in rows]
    return [decode_completion(lm, generate(lm, [prompt], max_tokens=12)[0]) for prompt in prompts]


def test_every_model_answers_what_has_a_reference(
    tiny_recipe: MakeRecipe, tiny_model: Path, word_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in word_prompts.read_text().splitlines()]
    first = held_out(asyncio.run(label(tiny_recipe())).dataset)  # which prompts they are
    bare = next(word for word in WORDS if word in first[0].prompt.text)
    kept = [row if row["word"] != bare else {"word": bare} for row in rows]
    word_prompts.write_text("".join(json.dumps(row) + "\n" for row in kept))
    labels = {"sampling": {"temperature": 0.8, "max_tokens": 12}, "soft": {"k": 16}, "samples": 2}
    recipe = settings(
        tiny_recipe(label=labels, dataset={"root": str(word_prompts.parent / "two"), "name": "two"}),
        metrics=METRICS, batch_size=2, answers=1,
    )  # fmt: skip
    assert recipe.student is not None
    dataset = asyncio.run(label(recipe)).dataset
    distill(recipe, recipe.student, dataset)
    found = evaluate(recipe, recipe.student, dataset).report
    student = Path(recipe.students) / recipe.name / "white-box"
    once = list({row.prompt.id: row for row in held_out(dataset)}.values())
    referenced = [row for row in once if row.prompt.reference]
    assert len(once) == len(first) == len(referenced) + 1 > 2
    references = [row.prompt.reference or "" for row in referenced]
    for row, folder in zip(found.models, (tiny_model, student), strict=True):
        answers = said_alone(folder, referenced)
        assert row.scores["chrF"].mean == CHRF().corpus_score(answers, [references]).score
        assert row.scores["exact match"].mean == np.mean(np.equal(answers, references))
        assert row.reference_score is None
    teacher, own = (row.scores["chrF"].mean for row in found.models)
    assert teacher != own
    (difference,) = found.differences
    assert (difference.role, difference.scores["chrF"].mean) == ("teacher", pytest.approx(own - teacher))
    assert [one.name for one in found.metrics] == ["chrF", "exact match", "character error rate"]
    assert len(found.answers) == 1
    assert found.answers[0].answers == tuple(said_alone(folder, once[:1])[0] for folder in (tiny_model, student))
    assert any(f"On {len(referenced)} held-out prompts with a reference: chrF" in one for one in found.notes)
    assert "These metrics leave out 1 held-out prompts without a reference." in found.notes
    monkeypatch.setattr("stillhouse.evaluation.measures.held_out.measure_all", None)
    assert not evaluate(settings(recipe, batch_size=7), recipe.student, dataset).fresh  # the same figures


def test_metrics_without_any_reference_are_refused(
    tiny_recipe: MakeRecipe, word_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in word_prompts.read_text().splitlines()]
    word_prompts.write_text("".join(json.dumps({"word": row["word"], "reference": " "}) + "\n" for row in rows))
    recipe = tiny_recipe()
    assert recipe.student is not None
    dataset = asyncio.run(label(recipe)).dataset
    recipe = settings(recipe, metrics=METRICS)
    distill(recipe, recipe.student, dataset)
    monkeypatch.setattr("stillhouse.evaluation.measures.held_out.measure_all", None)  # nothing is measured first
    said = r"prompts\.reference is null: evaluate\.metrics \(chrF, exact match, character error rate\) needs"
    with pytest.raises(RecipeError, match=said):
        evaluate(recipe, recipe.student, dataset)


def test_a_misspelt_metric_is_told_before_anything_is_labelled(tiny_recipe: MakeRecipe) -> None:
    recipe = tiny_recipe(evaluate={"metrics": ["exact-mach"]})
    for check in (check_labels, check_student):
        with pytest.raises(
            RecipeError, match=r"evaluate\.metrics\.0\.kind is 'exact-mach'.*Did you mean 'exact-match'"
        ):
            check(recipe)


def test_metrics_stand_in_a_recipe_and_come_back(tiny_recipe: MakeRecipe) -> None:
    recipe = tiny_recipe(evaluate={"metrics": ["chrf", {"kind": "rouge", "variant": "rouge2", "name": "R2"}]})
    chrf, rouge = recipe.evaluate.metrics
    assert (chrf.kind, chrf.name, chrf.options) == ("chrf", None, {})
    assert (rouge.kind, rouge.name, rouge.options) == ("rouge", "R2", {"variant": "rouge2"})
    assert Recipe.model_validate(recipe.model_dump(mode="json", by_alias=True)) == recipe


def written(*texts: str) -> ModelAnswers:
    return ModelAnswers(texts, tuple(len(text) for text in texts), tuple(False for _ in texts))


def test_labels_stand_for_a_teacher_that_does_not_run_here(scripted_recipe: MakeRecipe) -> None:
    recipe = settings(scripted_recipe(label={"soft": None}), metrics=["exact-match"])
    rows = [
        completion(text, question=text, reference=right, finish_reason="length" if text == "c" else "stop")
        for text, right in [("a", "a"), ("b", "b"), ("c", "x")]
    ]
    asked = select_prompts(rows, recipe.evaluate)
    students = MeasuredModels((ModelRow("black-box student", "s", 1, 1.0),), (written("a", "no", "no"),))
    metrics = open_metrics(recipe.evaluate.metrics)
    found = with_scores(with_answer_quality(with_labels(students, asked, recipe, "a + b"), asked, ()), metrics, asked)
    teacher, student = found.rows
    assert (teacher.role, teacher.model, teacher.parameters, teacher.tokens_per_second) == (
        "teacher",
        "a + b",
        None,
        None,
    )
    assert teacher.scores["exact match"].mean == pytest.approx(2 / 3)
    assert student.scores["exact match"].mean == pytest.approx(1 / 3)
    assert [one.texts for one in found.answers] == [("a", "b", "c"), ("a", "no", "no")]
    assert teacher.answer_quality is not None
    assert teacher.answer_quality.cut.mean == pytest.approx(1 / 3)
    assert teacher.answer_quality.tokens == Interval(5, 5, 5)
    assert student.answer_quality is not None
    assert student.answer_quality.from_teacher is not None
    assert student.answer_quality.from_teacher.cut.mean == pytest.approx(-1 / 3)
    assert student.answer_quality.from_teacher.length_ratio is not None
    assert student.answer_quality.from_teacher.length_ratio.mean == pytest.approx(5 / 3)


def test_where_the_labels_are_the_references_they_have_no_line_and_are_compared_with(
    scripted_recipe: MakeRecipe,
) -> None:
    recipe = settings(scripted_recipe(label={"soft": None}))
    forced = recipe.model_copy(update={"label": recipe.label.model_copy(update={"mode": "score"})})
    asked = select_prompts([completion("a", question="a", reference="a")], recipe.evaluate)
    students = MeasuredModels((ModelRow("black-box student", "s", 1, 1.0),), (written(""),))
    found = with_answer_quality(with_labels(students, asked, forced, "a"), asked, ())
    (student,) = found.rows
    assert len(found.answers) == 1
    assert student.answer_quality is not None
    assert student.answer_quality.from_teacher is not None
    assert student.answer_quality.from_teacher.empty == Interval(1, 1, 1)


def test_prompts_of_an_encoder_decoder_are_answered_in_any_order(tmp_path: Path) -> None:
    lm = load_language_model(tiny_t5(tmp_path / "t5", vocabulary=[*LETTERS, *PHONEMES]))
    spelt = [" ".join(word) for word in ("abacus", "zoo", "i", "questions", "hello", "ox", "jumping")]
    rows = tuple(completion(question=word) for word in spelt)
    task = MeasurementTask(rows, EvaluateSettings(batch_size=3), max_tokens=6, vocabulary=0, soft=False, prompts=rows)
    alone = [_answers(lm, dataclasses.replace(task, prompts=(row,))) for row in rows]
    together = _answers(lm, task)
    assert [(text,) for text in together.texts] == [one.texts for one in alone]
    assert [(count,) for count in together.tokens] == [one.tokens for one in alone]
    assert [(cut,) for cut in together.cut] == [one.cut for one in alone]
    assert len(set(together.texts)) > 2


def test_a_report_without_metrics_keeps_the_key_that_it_had() -> None:
    before = {"baselines", "limit", "answers", "latency_prompts", "dtype", "near_duplicate"}
    assert set(settings_key(EvaluateSettings())) == before
    assert set(settings_key(EvaluateSettings(batch_size=3))) == before
    assert set(settings_key(EvaluateSettings.model_validate({"metrics": ["chrf"]}))) == before | {"metrics"}
