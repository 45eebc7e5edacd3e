"""flows/recipes/t5-small.yaml, the whole way: a model with t5-small's own config, random weights and a small tokenizer."""

import json
from pathlib import Path

import pytest

from stillhouse.errors import RecipeError
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_labels
from stillhouse.stages.stages import run_stages
from tests.t5_small import t5_small

TALKS = [
    {"dialogue": f"Ann: Is the {thing} still in the {place}?\nBen: No, I sold it.", "summary": f"Ben sold the {thing}."}
    for thing in ("kettle", "violin", "tram", "otter", "lamp")
    for place in ("shed", "attic", "garden", "cellar")
]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe as it is shipped, but for where its model and its data come from, and how long it trains."""
    monkeypatch.chdir(tmp_path)
    texts = [f"summarize: {talk['dialogue']} {talk['summary']}" for talk in TALKS]
    t5_small(tmp_path / "t5-small", texts)
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in TALKS))
    return load_recipe(
        "flows/recipes/t5-small.yaml",
        [
            f"teacher.model={tmp_path / 't5-small'}",
            "teacher.finetune.train.max_steps=2",
            f"prompts.source={tmp_path / 'talks.jsonl'}",
            "prompts.holdout=0.2",
            "quality=[]",  # random weights do not know how to end an answer
            "label.max_rejected=1",
            "label.sampling.max_tokens=6",
            "student.train.max_steps=2",
            "evaluate.latency_prompts=2",
        ],
    )


@pytest.mark.slow
def test_the_whole_way_from_a_t5_small_to_its_report(recipe: Recipe) -> None:
    result = run_stages(recipe)
    report = result.evaluation.report
    assert [model.role for model in report.models] == [
        "teacher",
        "teacher before fine-tuning",
        "untrained student",
        "gold student",
        "black-box student",
        "white-box student",
        "white-box student, int8",
    ]
    sizes = {model.role: model.parameters for model in report.models}
    assert sizes["teacher"] == 60_506_624
    assert sizes["white-box student"] == 34_283_008
    assert [metric.name for metric in report.metrics] == ["ROUGE-L", "ROUGE-1", "chrF"]
    assert all(set(model.scores) == {"ROUGE-L", "ROUGE-1", "chrF"} for model in report.models)
    assert not run_stages(recipe).evaluation.fresh


def test_a_template_without_the_prefix_is_refused_before_anything_is_trained(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "bare.j2").write_text("{{ dialogue }}")
    prompts = recipe.prompts.model_copy(update={"template": str(tmp_path / "bare.j2")})
    with pytest.raises(RecipeError, match=r"prompts\.template .*summarize: .*teacher\.task_prefix"):
        check_labels(recipe.model_copy(update={"prompts": prompts}))
