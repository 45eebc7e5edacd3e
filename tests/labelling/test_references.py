"""Several references of one prompt: score mode labels each, generate mode keeps the first and says so."""

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import dataset_folder, open_dataset
from stillhouse.errors import PromptError
from stillhouse.labelling.engine import label
from stillhouse.labelling.plan import make_plan
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Message, Prompt, TeacherIdentity
from stillhouse.teachers.base import AnswerSettings, Request
from tests.conftest import MakeRecipe
from tests.labelling.test_parts import InThisProcess, in_parts, rows, split_up

PAIRS = [("one", "I"), ("two", "II"), ("one", "1"), ("one", "I"), ("two", "II "), ("three", "III")]


@pytest.fixture
def recipe(scripted_recipe: MakeRecipe, tmp_path: Path) -> Any:
    def make(pairs: list[tuple[str, str | None]], mode: str = "score", root: str = "labels", **parts: Any) -> Recipe:
        source = tmp_path / "pairs.jsonl"
        source.write_text("".join(json.dumps({"prompt": prompt, "gold": gold}) + "\n" for prompt, gold in pairs))
        return scripted_recipe(
            prompts={"source": str(source), "reference": "gold", "holdout": 0.0},
            label={"mode": mode, "shard_size": 2, "soft": {"k": 4}, **parts.pop("label", {})},
            dataset={"root": str(tmp_path / root), "name": "pairs"},
            **parts,
        )

    return make


def labelled(recipe: Recipe) -> list[tuple[str, str]]:
    asyncio.run(label(recipe))
    dataset = open_dataset(dataset_folder(recipe.dataset))
    assert dataset.problems() == []
    return [(row["prompt"][-1]["content"], row["completion"][0]["content"]) for row in rows(recipe)]


def test_every_pair_of_prompt_and_reference_is_scored_once(recipe: Any) -> None:
    made = recipe(PAIRS)
    assert labelled(made) == [("one", "I"), ("two", "II"), ("one", "1"), ("two", "II "), ("three", "III")]
    found = rows(made)
    assert [row["reference"] for row in found] == [row["completion"][0]["content"] for row in found]
    assert len({row["id"] for row in found}) == 5
    assert open_dataset(dataset_folder(made.dataset)).manifest.duplicate_prompts == 1


def test_a_pairs_key_knows_nothing_of_the_others(recipe: Any) -> None:
    """So what was scored before is found again, whatever stands before and after it."""
    alone = recipe([("one", "I")])
    assert labelled(alone) == [("one", "I")]
    (key,) = [row["id"] for row in rows(alone)]
    labelled(recipe([("one", "0"), ("one", "I")]))
    assert key in {row["id"] for row in rows(recipe([]))}
    done = asyncio.run(label(recipe([("one", "I"), ("one", "0"), ("one", "i")])))
    assert (done.sent, done.dataset.manifest.rows["train"]) == (1, 3)
    again = asyncio.run(label(recipe([("one", "I"), ("one", "0"), ("one", "i")])))
    assert (again.sent, again.fresh) == (0, False)


def test_parts_score_the_same_pairs(recipe: Any) -> None:
    alone, together = recipe(PAIRS, root="alone"), recipe(PAIRS, root="together")
    labelled(alone)
    runner = InThisProcess()
    in_parts(split_up(together), runner)
    assert Counter(map(str, rows(together))) == Counter(map(str, rows(alone)))
    assert len(runner.recipes) > 1


def test_two_parts_with_the_references_of_one_prompt_are_two_parts(recipe: Any) -> None:
    together = split_up(recipe([("one", str(number)) for number in range(8)], label={"shard_size": 1}))
    runner = InThisProcess()
    in_parts(together, runner)
    assert len({one.dataset.name for one in runner.recipes}) == len(runner.recipes) == 8
    assert [row["reference"] for row in rows(together)] == [str(number) for number in range(8)]


def test_a_prompt_that_is_asked_once_keeps_its_first_reference_and_says_so(
    recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        labelled(recipe([*PAIRS, ("three", None)], mode="generate"))
    (told,) = [record.getMessage() for record in caplog.records if "a different reference" in record.getMessage()]
    assert "repeats prompts with a different reference: row 3, 5 (2 in all)" in told
    assert "label.mode: score" in told
    kept = {row["prompt"][-1]["content"]: row["reference"] for row in rows(recipe([]))}
    assert kept == {"one": "I", "two": "II", "three": "III"}


def test_repeats_with_the_same_reference_are_no_news(recipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        labelled(recipe([("one", "I"), ("one", "I"), ("one", None), ("one", " ")], mode="generate"))
    assert not caplog.records


def test_a_missing_reference_names_its_row(recipe: Any) -> None:
    with pytest.raises(PromptError, match=r"label\.mode is 'score', so every row needs a reference, and row 2 of"):
        make_plan(recipe([("one", "I"), ("two", "\n")]), TeacherIdentity("scripted", "x"))


def test_keys_are_what_they_were_before_prompts_had_several_references() -> None:
    """Literal values, of the release that labelled a prompt's first reference alone."""
    prompt = Prompt((Message("user", "one"),), "gold")
    drawn = AnswerSettings.from_label(
        TeacherIdentity("transformers", "m", content_sha256="a" * 8, options_sha256="b", continuing="x"),
        LabelSettings(),
    )
    assert Request(prompt, 0, drawn).key == "49a1c24b70c33c307b8ce6030249d951"
    assert Request(prompt, 1, drawn).key == "e972209d436c6cbe5481804b7f0e5e8e"
    scored = AnswerSettings.from_label(
        TeacherIdentity("reference", "references", continuing=""), LabelSettings(mode="score")
    )
    assert Request(prompt, 0, scored, "gold").key == "d65220d988de4bf71076951a47c340db"
