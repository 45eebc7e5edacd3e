"""`prompts.last_turn: continue`: who can go on from an assistant's turn, what is sent, and what it does to keys."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import PromptError, RecipeError
from stillhouse.labelling.engine import label
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.labelling.plan import make_plan
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.records import Message, Prompt, TeacherIdentity
from stillhouse.teachers.base import AnswerSettings, Request
from tests.conftest import MakeRecipe
from tests.labelling.test_parts import InThisProcess, in_parts, rows, split_up
from tests.stand_in import running_stand_in

OPEN = {"messages": [{"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "An"}]}
VLLM = {"continue_final_message": True, "add_generation_prompt": False}


def with_rows(recipe: Recipe, tmp_path: Path, *given: dict[str, Any]) -> Recipe:
    source = tmp_path / "turns.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in given))
    raw = recipe.model_dump(mode="json", by_alias=True)
    raw["prompts"] = {"source": str(source), "last_turn": "continue"}
    return recipe_from(raw, "test")


@pytest.mark.parametrize(
    ("options", "more"),
    [({"continue_body": VLLM}, VLLM), ({"continue_body": {}}, {})],
    ids=["the fields of vLLM and SGLang", "a server that needs none"],
)
def test_an_api_is_asked_as_the_recipe_says_and_the_other_rows_as_ever(
    api_recipe: MakeRecipe, tmp_path: Path, options: dict[str, Any], more: dict[str, Any]
) -> None:
    with running_stand_in() as server:
        recipe = with_rows(api_recipe(server.base_url, [], options=options), tmp_path, {"prompt": "Hi"}, OPEN)
        asyncio.run(label(recipe))
    bodies = {body["messages"][-1]["role"]: body for body in server.stats.bodies}
    assert bodies["assistant"]["messages"] == OPEN["messages"]
    assert {name: bodies["assistant"].get(name) for name in VLLM} == {name: more.get(name) for name in VLLM}
    assert not VLLM.keys() & bodies["user"].keys()


def test_an_api_that_is_not_known_to_go_on_is_asked_nothing(api_recipe: MakeRecipe, tmp_path: Path) -> None:
    with running_stand_in() as server:
        recipe = with_rows(api_recipe(server.base_url, []), tmp_path, {"prompt": "Hi"}, OPEN)
        with pytest.raises(PromptError) as caught:
            asyncio.run(label(recipe))
        assert server.stats.requests == 0
    told = str(caught.value)
    assert (caught.value.setting, caught.value.value) == ("teacher.kind", "openai")
    assert "the prompt 'Name a tree.\\nAn' of row 2 ends with an assistant's turn" in told
    for words in (
        "teacher.options.continue_body",
        "prompts.last_turn",
        "transformers or vllm",
    ):
        assert words in told


def test_texts_go_on_by_themselves(api_recipe: MakeRecipe, tmp_path: Path) -> None:
    with running_stand_in() as server:
        recipe = with_rows(api_recipe(server.base_url, [], options={"api": "completions"}), tmp_path, OPEN)
        asyncio.run(label(recipe))
    assert [body["prompt"] for body in server.stats.bodies] == ["Name a tree.\nAn"]


def test_continue_body_may_set_no_more_than_extra_body(api_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = with_rows(api_recipe("http://127.0.0.1:9/v1", [], options={"continue_body": {"n": 2}}), tmp_path, OPEN)
    with pytest.raises(RecipeError, match=r"teacher\.options\.continue_body\.n: it cannot be set here"):
        asyncio.run(label(recipe))


def key(continuing: str | None, prompt: Prompt) -> str:
    teacher = TeacherIdentity("transformers", "m", content_sha256="a" * 8, options_sha256="b", continuing=continuing)
    return Request(prompt, 0, AnswerSettings.from_label(teacher, LabelSettings())).key


def test_a_key_differs_only_where_something_else_is_sent() -> None:
    """Literal values, of the release that closed such a turn and opened another."""
    closed = Prompt((Message("user", "one"), Message("assistant", "two")))
    asked = Prompt((Message("user", "one"),))
    assert closed.id == "e98ed75f646e68bb81020e3483d464b6"
    assert key("", closed) == "cb937572d30eb6192c0502d0170fe8a5"
    assert key("continue_final_message", closed) != key("", closed)
    assert {key(one, asked) for one in (None, "", "continue_final_message")} == {"49a1c24b70c33c307b8ce6030249d951"}


def test_identities_that_differ_in_this_alone_are_the_same_teacher() -> None:
    """A dataset of an earlier release, whose manifest does not say it, merges with one of today."""
    assert TeacherIdentity("vllm", "m", continuing="x") == TeacherIdentity("vllm", "m")
    assert hash(TeacherIdentity("vllm", "m", continuing="x")) == hash(TeacherIdentity("vllm", "m"))


def test_what_was_answered_is_taken_over(api_recipe: MakeRecipe, tmp_path: Path) -> None:
    with running_stand_in() as server:
        made = api_recipe(server.base_url, [], options={"continue_body": VLLM})
        asyncio.run(label(with_rows(made, tmp_path, OPEN)))
        done = asyncio.run(label(with_rows(made, tmp_path, OPEN, {"prompt": "Hi"})))
    assert (done.sent, done.dataset.manifest.rows["train"] + done.dataset.manifest.rows.get("validation", 0)) == (1, 2)


def test_parts_go_on_from_the_same_turns(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    more = [{"prompt": f"Name {number} trees."} for number in range(5)]
    recipe = split_up(with_rows(scripted_recipe(label={"shard_size": 2}), tmp_path, OPEN, *more))
    in_parts(recipe, InThisProcess())
    assert sorted(row["prompt"][-1]["role"] for row in rows(recipe)) == ["assistant"] + ["user"] * 5


def test_a_teacher_of_another_package_that_says_nothing_is_not_asked(
    scripted_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = with_rows(scripted_recipe(), tmp_path, OPEN)
    with pytest.raises(PromptError, match=r"teacher\.kind is 'parrot': .*continue_body"):
        make_plan(recipe, TeacherIdentity("parrot", "p"))


def test_what_was_answered_is_not_planned_again(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A teacher in this process is called differently for these prompts, which is part of their keys."""
    other = {"messages": [{"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "A"}]}
    asyncio.run(label(with_rows(tiny_recipe(), tmp_path, OPEN)))
    estimate = estimate_labelling(with_rows(tiny_recipe(), tmp_path, OPEN, other))
    assert (estimate.answered, estimate.to_send) == (1, 1)
