"""Anthropic's kind: what is sent, how answers and errors are read, and its batch jobs, on a stand-in of its protocol."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stillhouse.errors import JobsPending, RecipeError, TeacherRefused, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.anthropic import AnthropicTeacher
from stillhouse.teachers.base import open_teacher
from tests.conftest import MakeRecipe
from tests.labelling.batches.test_batches import jobs_of
from tests.stand_in import RunningStandIn, running_stand_in
from tests.stand_in_anthropic import MessageBatches

PROMPTS = [f"Name colour {number}." for number in range(8)]
COST = (20 * 1.0 + 10 * 10.0) / 1e6


@contextmanager
def provider(*ends: str, polls: int = 1) -> Iterator[RunningStandIn]:
    with running_stand_in(messages=MessageBatches(ends=[*ends], polls=polls)) as server:
        yield server


def recipe_of(
    make: MakeRecipe,
    server: RunningStandIn,
    prompts: Any = PROMPTS,
    *,
    options: Any = None,
    system: str | None = None,
    **settings: Any,
) -> Recipe:
    raw = make(server.base_url, prompts, **settings).model_dump(mode="json", by_alias=True)
    base_url = server.base_url.removesuffix("/v1")
    raw["prompts"]["system"] = system
    raw["teacher"] = {
        "kind": "anthropic",
        "model": "stand-in",
        "price": {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0},
        "options": {"base_url": base_url, **(options or {})},
    }
    return Recipe.model_validate(raw)


def by_batch(**settings: Any) -> dict[str, Any]:
    return {"delivery": "batch", "patience": 2, "batch": {"poll": 0.02, "unseen": 0.2, **settings}}


def test_answers_with_their_cost_and_thinking(api_recipe: MakeRecipe) -> None:
    with provider() as server:
        thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
        recipe = recipe_of(api_recipe, server, options=thinking, system="Be brief.")
        result = asyncio.run(label(recipe))
        (row, *_) = result.dataset.rows("train")
        assert (row["completion"][0]["content"], row["reasoning"]) == ("Blue, I think.", "Skies are blue.")
        assert (row["prompt_tokens"], row["completion_tokens"], row["finish_reason"]) == (20, 10, "stop")
        assert result.dataset.manifest.totals.spent_usd == pytest.approx(8 * COST)
        assert set(server.stats.billed) == set(PROMPTS)


def test_what_is_sent(api_recipe: MakeRecipe) -> None:
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    with provider() as server:
        recipe = recipe_of(api_recipe, server, system="Be brief.", response_format=wanted)
        teacher = open_teacher(recipe.teacher, recipe.label, 0)
        assert isinstance(teacher, AnthropicTeacher)
        from stillhouse.labelling.plan import make_plan

        with make_plan(recipe, teacher.identity) as plan:
            body = teacher._body(plan.shard(0).requests[0])
    assert body["system"] == "Be brief."
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert (body["temperature"], body["max_tokens"]) == (0.7, 256)


def test_errors_of_prompts_and_of_the_server(api_recipe: MakeRecipe) -> None:
    prompts = [*PROMPTS[:5], "a !429:0.01", "b !filter*", "c !empty*", "d !400long*"]
    with provider() as server:
        result = asyncio.run(label(recipe_of(api_recipe, server, prompts)))
        assert result.dataset.manifest.rejected == {"refused": 1, "empty": 1, "too-long": 1}


def test_what_every_request_gets_ends_the_run(api_recipe: MakeRecipe) -> None:
    with provider() as server, pytest.raises(TeacherRefused, match="401"):
        asyncio.run(label(recipe_of(api_recipe, server, ["a !401*"])))
    with pytest.raises(TeacherUnavailable, match="127.0.0.1"):
        asyncio.run(label(recipe_of(api_recipe, server, patience=0.5)))  # it has gone


@pytest.mark.parametrize(
    ("ends", "jobs"),
    [([], 1), (["expired:3"], 2), (["cancelled:0"], 2), (["lost:2"], 2)],
    ids=str,
)
def test_batches_at_half_the_price(api_recipe: MakeRecipe, ends: list[str], jobs: int) -> None:
    with provider(*ends, polls=2) as server:
        recipe = recipe_of(api_recipe, server, **by_batch())
        result = asyncio.run(label(recipe))
        assert sum(result.dataset.manifest.rows.values()) == 8
        assert set(server.stats.billed) == set(PROMPTS)
        assert result.dataset.manifest.totals.spent_usd == pytest.approx(8 * COST / 2)
        assert len(server.server.messages.jobs) == len(jobs_of(recipe)) == jobs
        assert max(server.stats.billed.values()) == 1


def test_a_job_whose_submission_is_not_known_is_found_without_metadata(api_recipe: MakeRecipe) -> None:
    with provider(polls=3) as server:
        server.server.messages.refuse_creation = 1
        recipe = recipe_of(api_recipe, server, **by_batch())
        asyncio.run(label(recipe))
        assert set(server.server.messages.submitted.values()) == {1}
        assert server.stats.billed_answers == 8


def test_another_job_that_looks_like_ours_does_no_harm(api_recipe: MakeRecipe) -> None:
    with provider(polls=2) as server:
        recipe = recipe_of(api_recipe, server, **by_batch())
        with pytest.raises(JobsPending):
            asyncio.run(label(recipe, detach=True))
        (job,) = server.server.messages.jobs.values()
        for request in server.server.messages.requests[job["id"]]:  # it becomes somebody else's
            request["custom_id"] = f"other-{request['custom_id'][-8:]}"
        asyncio.run(label(recipe))
        told = [(card.answered, card.unanswered, card.spent_usd) for card in jobs_of(recipe)]
        assert told == [(0, 8, 0.0), (8, 0, pytest.approx(8 * COST / 2))]


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"soft": {"k": 4}}, "label.soft"),
        ({"top_logprobs": 2}, "label.top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "label.response_format"),
        ({"options": {"extra_body": {"stream": True}}}, "teacher.options.extra_body.stream"),
        ({"options": {"thinkng": {}}}, "teacher.options.thinkng"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(api_recipe: MakeRecipe, settings: dict[str, Any], setting: str) -> None:
    with provider() as server:
        recipe = recipe_of(api_recipe, server, **settings)
        with pytest.raises(RecipeError) as caught:
            open_teacher(recipe.teacher, recipe.label, 0)
        assert caught.value.setting == setting


def test_a_key_is_needed_for_another_machine(api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with provider() as server:
        recipe = recipe_of(api_recipe, server, options={"base_url": "https://api.anthropic.com"})
    with pytest.raises(RecipeError, match="ANTHROPIC_API_KEY"):
        open_teacher(recipe.teacher, recipe.label, 0)
