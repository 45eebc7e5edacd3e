"""On-policy rounds: the student writes, the teacher scores these tokens, the student learns from the scores."""

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from stillhouse.dataset.store import Dataset, open_dataset
from stillhouse.errors import UsageError
from stillhouse.labelling.engine import label
from stillhouse.models.files import ModelFiles
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.rounds import run as run_module
from stillhouse.stages.rounds import stage as stage_module
from stillhouse.stages.stages import distill_students, evaluate_stage
from stillhouse.student import rollouts as rollouts_module
from stillhouse.teachers.transformers import TransformersTeacher
from tests.conftest import MakeRecipe

ROUNDS = {"rounds": 2, "prompts": 4, "sampling": {"temperature": 1.0, "max_tokens": 8}, "batch_size": 3}


def on_policy(make: MakeRecipe, **settings: Any) -> Recipe:
    evaluate = {**make().evaluate.model_dump(), "baselines": [], "answers": 2, "latency_prompts": 2}
    return make(on_policy={**ROUNDS, **settings}, evaluate=evaluate)


def rollouts(recipe: Recipe, version: int) -> Dataset:
    return open_dataset(Path(recipe.dataset.root) / "words-rollouts", version)


def test_the_rounds_make_a_student_and_again_nothing(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = on_policy(tiny_recipe)
    labelled = asyncio.run(label(recipe)).dataset
    *_, white_box, last = distill_students(recipe)
    assert (white_box.card.variant, last.card.variant) == ("white-box", "on-policy")
    assert last.trained
    assert [one.number for one in last.card.rounds] == [1, 2]
    assert sum(one.kept for one in last.card.rounds) == 1
    for one in last.card.rounds:
        assert one.held_out_kl is not None and one.health.own_text is not None
        assert one.seconds is not None and min(one.seconds.writing, one.seconds.scoring) > 0
        assert one.seconds.learning >= 0  # to a tenth of a second, as in the card
        assert f"round {one.number}; held-out KL" in str(one)
    for version in (1, 2):
        scored = rollouts(recipe, version)
        assert not scored.problems()
        assert scored.manifest.rows == {"train": 4}
        assert scored.manifest.mode == "score"
    again = distill_students(recipe)
    assert [one.trained for one in again] == [False, False]
    report = evaluate_stage(recipe, labelled).report
    assert [model.role for model in report.models] == ["teacher", "white-box student", "on-policy student"]


@pytest.mark.slow
def test_rounds_that_begin_with_the_untrained_student(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = on_policy(tiny_recipe, start="untrained", rounds=1)
    labelled = asyncio.run(label(recipe)).dataset
    (last,) = distill_students(recipe)
    assert (last.card.variant, last.trained) == ("on-policy", True)
    assert not (tmp_path / "students/test/white-box").exists()
    rows = rollouts(recipe, 1).to_table("train").to_pylist()
    untrained = ModelFiles("untrained", tmp_path / "students/test/untrained")
    assert rollouts(recipe, 1).manifest.recipe["prompts"]["written_by"]["student"] == untrained.content_sha256
    assert len(rows) == 4
    (again,) = distill_students(recipe)
    assert not again.trained
    report = evaluate_stage(recipe, labelled).report
    assert [model.role for model in report.models] == ["teacher", "on-policy student"]
    with pytest.raises(UsageError, match="no such student"):
        distill_students(recipe, only="white-box")


def test_exactly_the_written_tokens_are_scored(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = on_policy(tiny_recipe, rounds=1)
    asyncio.run(label(recipe))
    distill_students(recipe)
    (file,) = (Path(recipe.students) / "test/rounds/round-001").glob("rollouts-*/rollouts.parquet")
    written = {tuple(row["token_ids"]) for row in pq.read_table(file).to_pylist()}
    rows = rollouts(recipe, 1).to_table("train").to_pylist()
    assert {tuple(row["completion_token_ids"]) for row in rows} == written
    for row in rows:
        assert len(row["completion_logprobs"]) == len(row["completion_token_ids"])
        assert row["finish_reason"] == ("stop" if row["completion_token_ids"][-1] == 0 else "length")


def test_a_further_round_goes_on_from_the_last(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    asyncio.run(label(on_policy(tiny_recipe)))
    distill_students(on_policy(tiny_recipe))
    first = load_file(tmp_path / "students/test/rounds/round-002/white-box/model.safetensors")
    distill_students(on_policy(tiny_recipe, rounds=3))
    same = load_file(tmp_path / "students/test/rounds/round-002/white-box/model.safetensors")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert (tmp_path / "students/test/rounds/round-003/white-box").is_dir()


class Stopped(BaseException):
    """As a kill would stop a run: nothing handles it."""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["writing", "written", "scored", "training", "trained", "publishing"])
def test_stopped_anywhere_it_ends_as_an_unbroken_run(
    where: str, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = on_policy(tiny_recipe)
    asyncio.run(label(recipe))
    distill_students(recipe)
    unbroken = load_file(tmp_path / "students/test/on-policy/model.safetensors")
    scored_by_unbroken = [rollouts(recipe, version).manifest.plan_sha256 for version in (1, 2)]
    shutil.rmtree(tmp_path / "students/test")
    shutil.rmtree(tmp_path / "labels/words-rollouts")
    asked = sent_to(monkeypatch)
    module, name = STOPS[where]
    with monkeypatch.context() as patched:
        calls: list[int] = []
        real = getattr(module, name)

        def stopping(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise Stopped
            return real(*arguments, **named)

        patched.setattr(module, name, stopping)
        with suppress(Stopped):
            distill_students(recipe)
    distill_students(recipe)
    broken = load_file(tmp_path / "students/test/on-policy/model.safetensors")
    assert all(torch.equal(weight, broken[key]) for key, weight in unbroken.items())
    assert [rollouts(recipe, version).manifest.plan_sha256 for version in (1, 2)] == scored_by_unbroken
    assert len(asked) == len(set(asked))  # nothing is scored twice


STOPS: dict[str, tuple[Any, str]] = {
    "writing": (rollouts_module, "_write"),
    "written": (run_module, "written_of"),
    "scored": (run_module, "measure_round"),
    "training": (run_module, "training_recipe"),
    "trained": (run_module, "RoundResult"),
    "publishing": (stage_module, "write_cards"),
}


def sent_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all requests that the teacher gets."""
    asked: list[str] = []
    real = TransformersTeacher.answer

    async def answer(self: TransformersTeacher, requests: Any) -> Any:
        asked.extend(request.key for request in requests)
        return await real(self, requests)

    monkeypatch.setattr(TransformersTeacher, "answer", answer)
    return asked
