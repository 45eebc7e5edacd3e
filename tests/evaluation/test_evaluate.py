"""What the report's figures are, held against plain arithmetic on the models' own outputs."""

import asyncio
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.encodings import PackedLabels
from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, StudentMissing
from stillhouse.evaluation.evaluate import evaluate
from stillhouse.evaluation.measures import distance
from stillhouse.evaluation.measures.distance import distances, kl_and_agreement, kl_from_labels
from stillhouse.evaluation.measures.measurement_task import MeasurementTask, ModelToMeasure
from stillhouse.labelling.engine import label
from stillhouse.models.load import load_language_model
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.student_init import InitSettings
from stillhouse.records import Completion, TokenTrace
from stillhouse.stages.stages import students_to_train
from stillhouse.student.data.rows import Example
from stillhouse.student.training.train import distill
from tests.conftest import MakeRecipe, make_tiny_model
from tests.precision import close_to_dense, in_float64

Labelled = tuple[Recipe, StudentSettings, Dataset]


@pytest.fixture
def task(labelled: Labelled) -> MeasurementTask:
    recipe, _, dataset = labelled
    batches = list(dataset.batches("validation"))
    rows = tuple(completion_at(batch, index) for batch in batches for index in range(batch.num_rows))
    assert len(rows) > 1
    return MeasurementTask(
        rows, recipe.evaluate, max_tokens=12, vocabulary=dataset.manifest.teacher.vocabulary_size or 0, soft=True
    )


@pytest.fixture
def teacher(tiny_model: Path) -> ModelToMeasure:
    return ModelToMeasure("teacher", "tiny", tiny_model, is_teacher=True)


@pytest.fixture
def student(tmp_path: Path) -> ModelToMeasure:
    return ModelToMeasure("student", "other", make_tiny_model(tmp_path / "student", layers=2, seed=5))


def trace_of(row: Completion) -> TokenTrace:
    assert row.trace is not None
    return row.trace


def probabilities(subject: ModelToMeasure, row: Completion) -> torch.Tensor:
    """At each completion token, with no batch and no padding: (completion tokens, vocabulary) float64."""
    trace = trace_of(row)
    tokens = [*trace.prompt_token_ids.tolist(), *trace.completion_token_ids.tolist()]
    with torch.no_grad():
        logits = load_language_model(subject.folder).model(input_ids=torch.tensor([tokens])).logits[0]
    return logits[len(trace.prompt_token_ids) - 1 : -1].double().softmax(-1)


@pytest.mark.numeric
@in_float64()
def test_distances_are_the_plain_sums(task: MeasurementTask, teacher: ModelToMeasure, student: ModelToMeasure) -> None:
    kl = surprise = own_surprise = 0.0
    agreed = tokens = 0
    for row in task.rows:
        for p, q, token in zip(
            probabilities(teacher, row), probabilities(student, row), trace_of(row).completion_token_ids, strict=True
        ):
            kl += sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)
            surprise -= math.log(float(q[token]))
            own_surprise -= math.log(float(p[token]))
            agreed += int(p.argmax() == q.argmax())
            tokens += 1
    first, second = distances([teacher, student], task)
    assert second.kl is not None
    assert second.agreement is not None
    assert second.perplexity is not None
    assert first.perplexity is not None
    assert second.kl.mean == pytest.approx(kl / tokens, rel=1e-9)
    assert second.agreement.mean == pytest.approx(agreed / tokens)
    assert second.perplexity.mean == pytest.approx(math.exp(surprise / tokens), rel=1e-9)
    assert first.perplexity.mean == pytest.approx(math.exp(own_surprise / tokens), rel=1e-9)
    assert (first.kl.mean, first.agreement.mean) == (0, 1) if first.kl and first.agreement else False
    assert second.kl.low < second.kl.mean < second.kl.high


@pytest.mark.numeric
@in_float64()
def test_blocks_change_nothing(
    task: MeasurementTask, teacher: ModelToMeasure, student: ModelToMeasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distances([teacher, student], task)
    monkeypatch.setattr(distance, "_BLOCK_BYTES", 1)
    for one, other in zip(whole, distances([teacher, student], task), strict=True):
        assert one.kl is not None
        assert other.kl is not None
        assert one.kl.mean == pytest.approx(other.kl.mean, rel=1e-9)


def test_a_teacher_far_away_is_known_by_its_labels(
    task: MeasurementTask, teacher: ModelToMeasure, student: ModelToMeasure
) -> None:
    full, coarse = distances([teacher, student], task)[1], distances([student], task)[0]
    assert full.kl is not None
    assert coarse.kl is not None
    assert full.agreement is not None
    assert 0 < coarse.kl.mean <= full.kl.mean  # fewer outcomes tell less
    assert coarse.agreement == full.agreement
    text_alone = distances([student], dataclasses.replace(task, soft=False))[0]
    assert (text_alone.kl, text_alone.agreement) == (None, None)
    assert text_alone.perplexity == coarse.perplexity


def test_stored_labels_of_the_whole_vocabulary_are_the_full_distribution() -> None:
    torch.manual_seed(0)
    known, logprobs = (torch.randn(4, 9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    ordered, ids = known.sort(dim=-1, descending=True)
    offsets, tail = np.arange(0, 37, 9), torch.full((4,), -math.inf).numpy()
    soft = PackedLabels(ids.int().numpy().ravel(), ordered.numpy().ravel(), offsets, tail)
    example = Example(ids[0].int().numpy(), ids[:, 0].int().numpy(), soft)
    for full, stored in zip(kl_and_agreement(logprobs, known), kl_from_labels(logprobs, example), strict=True):
        close_to_dense(full.double(), stored.double(), summed=10.0)


def test_padded_rows_of_one_vocabulary_count_for_nothing() -> None:
    torch.manual_seed(0)
    known, logprobs = (torch.randn(3, width, dtype=torch.float64) for width in (12, 9))
    kl, agrees = kl_and_agreement(logprobs.log_softmax(-1), known.log_softmax(-1))
    expected, same = kl_and_agreement(logprobs.log_softmax(-1), known[:, :9].log_softmax(-1))
    close_to_dense(kl, expected, summed=10.0)
    assert torch.equal(agrees, same)


def test_another_tokenizer_is_not_compared_token_by_token(
    task: MeasurementTask, teacher: ModelToMeasure, tmp_path: Path
) -> None:
    foreign = ModelToMeasure("foreign", "x", make_tiny_model(tmp_path / "foreign", merges=3), shares_tokenizer=False)
    assert distances([teacher, foreign], task)[1] == distance.Distance(None, None, None)


def test_a_report_is_made_once_for_the_same_things(labelled: Labelled) -> None:
    recipe, student, dataset = labelled
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"baselines": ("untrained",)})})
    with pytest.raises(StudentMissing, match="Run `stillhouse distill`"):
        evaluate(recipe, student, dataset)
    distill(recipe, student, dataset)
    first = evaluate(recipe, student, dataset)
    assert first.fresh
    roles = ["teacher", "untrained student", "white-box student"]
    assert [model.role for model in first.report.models] == roles
    assert len(first.report.answers) == 2
    assert all(len(answers.answers) == 3 for answers in first.report.answers)
    assert first.report.models[0].parameters > first.report.models[1].parameters == first.report.models[2].parameters
    again = evaluate(recipe, student, dataset)
    assert not again.fresh
    assert again.report == first.report
    stored = json.loads(first.files.json.read_text())
    first.files.json.write_text(json.dumps(stored | {"models": "damaged"}))
    assert evaluate(recipe, student, dataset).fresh


def test_the_report_and_the_cards_tell_of_layers_that_were_chosen_by_importance(labelled: Labelled) -> None:
    recipe, student, dataset = labelled
    init = InitSettings.model_validate({"from": "teacher", "layers": 2, "choose": "leave-one-out", "rows": 4})
    student = student.model_copy(update={"init": init})
    settings = recipe.evaluate.model_copy(update={"baselines": ("untrained",)})
    recipe = recipe.model_copy(update={"student": student, "evaluate": settings})
    distill(recipe, student, dataset)
    result = evaluate(recipe, student, dataset)
    (shown,) = result.report.starts
    assert len(shown.kept) == 2 < len(shown.scores)
    assert sorted(shown.kept) == sorted(sorted(range(len(shown.scores)), key=lambda one: -shown.scores[one])[:2])
    assert (shown.method, shown.rows, shown.dataset) == ("leave-one-out", 4, dataset.manifest.label)
    kept = ", ".join(map(str, shown.kept))
    start = (
        f"| Start | 2 of the teacher's {len(shown.scores)} layers ({kept}), those whose removal costs most (leave-one-out "
        f"on 4 rows of {dataset.manifest.label}), with its embeddings, norms and head |"
    )
    for variant in ("untrained", "white-box"):
        assert start in (Path(recipe.students) / recipe.name / variant / "README.md").read_text(encoding="utf-8")
    assert result.files.html.read_text(encoding="utf-8").count('role="img" aria-label="Layer importance') == 1
    assert f"Layers kept: {kept} of {len(shown.scores)} (" in result.files.markdown.read_text(encoding="utf-8")
    assert evaluate(recipe, student, dataset).report.starts == result.report.starts  # read from its JSON


def test_the_int8_copy_is_measured_and_the_cards_have_the_figures(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, student, dataset = labelled
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"baselines": ()})})
    distill(recipe, student, dataset)
    folder = Path(recipe.students) / recipe.name / "white-box"
    asking = student.model_copy(update={"quantize": "int8"})
    recipe = recipe.model_copy(update={"student": asking})
    with pytest.raises(StudentMissing, match="Run `stillhouse distill`"):
        evaluate(recipe, asking, dataset)
    distill(recipe, asking, dataset)
    assert "It has not been evaluated." in (folder / "README.md").read_text()  # of the student with its copy
    result = evaluate(recipe, asking, dataset)
    teacher, whole, copy = result.report.models
    assert (copy.role, copy.is_int8, result.report.student) == ("white-box student, int8", True, whole)
    assert teacher.kl_per_token is not None
    assert whole.kl_per_token is not None
    assert copy.kl_per_token is not None
    assert copy.kl_per_token.mean == pytest.approx(whole.kl_per_token.mean, rel=0.05)
    assert copy.parameters == whole.parameters
    assert copy.megabytes < whole.megabytes
    assert copy.tokens_per_second.low <= copy.tokens_per_second.mean <= copy.tokens_per_second.high
    assert len(result.report.answers[0].answers) == 3
    assert "torchao" in result.report.versions
    for card in (folder / "README.md", folder / "int8/README.md"):
        text = card.read_text()
        assert f"evaluation {result.report.key[:12]}" in text
        assert f"| {copy.kl_per_token.mean:.2f} [" in text
    (folder / "README.md").write_text("lost")
    assert not evaluate(recipe, asking, dataset).fresh
    assert f"evaluation {result.report.key[:12]}" in (folder / "README.md").read_text()
    monkeypatch.setattr(
        "stillhouse.student.finished.quantize.importlib.util.find_spec",
        lambda name: None if name == "torchao" else object(),
    )
    (Path(recipe.evaluate.reports) / recipe.name / "report.json").unlink()
    with pytest.raises(RecipeError, match="torchao is not installed"):
        evaluate(recipe, asking, dataset)


def test_nothing_held_out_is_told(tiny_recipe: MakeRecipe) -> None:
    prompts = tiny_recipe().prompts.model_dump() | {"holdout": 0}
    recipe = tiny_recipe(prompts=prompts)
    assert recipe.student is not None
    dataset = asyncio.run(label(recipe)).dataset
    for variant in students_to_train(recipe):
        distill(recipe, variant, dataset)
    with pytest.raises(RecipeError, match=r"prompts\.holdout is .*Set it to a larger share such as 0\.2"):
        evaluate(recipe, recipe.student, dataset)
