"""flows/recipes/few-references.yaml, the whole way: a tiny model and rows in a file in place of the hub's."""

import json
from pathlib import Path

import pytest

from stillhouse.recipe.load import load_recipe
from stillhouse.stages.stages import run_stages

KINDS = ("card_arrival", "lost_card", "exchange_rate")


@pytest.mark.slow
def test_the_whole_way_with_a_tiny_model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"Where is it, {number}?", "label_text": KINDS[number % len(KINDS)]} for number in range(40)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(
        "flows/recipes/few-references.yaml",
        [
            f"teacher.model={tiny_model}",
            "teacher.finetune.train.max_steps=2",
            "teacher.finetune.train.bf16=false",
            f"prompts.source={tmp_path / 'questions.jsonl'}",
            "references.limit=20",
            "quality=[]",  # it does not know how to end an answer
            "student.init.layers=2",
            "student.train.max_steps=2",
            "student.train.bf16=false",
            "evaluate.latency_prompts=2",
        ],
    )
    report = run_stages(recipe).evaluation.report
    assert [model.role for model in report.models] == [
        "teacher",
        "teacher before fine-tuning",
        "untrained student",
        "gold student",
        "white-box student",
    ]
    assert all("kinds right" in model.scores for model in report.models)
