"""What `stillhouse plan` says before anything is sent, held against what labelling then does."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import dataset_folder
from stillhouse.errors import RecipeError
from stillhouse.labelling.engine import label, open_job
from stillhouse.labelling.estimate import Estimate, estimate_labelling
from stillhouse.recipe.recipe import Recipe
from tests.conftest import WORDS, MakeRecipe
from tests.stand_in import COMPLETION_TOKENS, PROMPT_TOKENS, RunningStandIn, running_stand_in

PRICE = {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0}


def api_recipe(make: MakeRecipe, server: RunningStandIn, price: Any = PRICE, **label_parts: Any) -> Recipe:
    return make(
        teacher={"kind": "openai", "model": "stand-in", "price": price, "options": {"base_url": server.base_url}},
        label={"shard_size": 5, "sampling": {"max_tokens": 100}, **label_parts},
    )


def test_nothing_is_sent_and_nothing_is_written(scripted_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        recipe = api_recipe(scripted_recipe, server)
        estimate = estimate_labelling(recipe)
        assert server.stats.requests == 0
    assert not dataset_folder(recipe.dataset).exists()
    assert (estimate.prompts, estimate.requests, estimate.answered, estimate.to_send) == (12, 12, 0, 12)


def test_the_worst_case_is_an_upper_bound_of_what_is_paid(scripted_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        recipe = api_recipe(scripted_recipe, server)
        before = estimate_labelling(recipe)
        paid = asyncio.run(label(recipe)).dataset.manifest.totals
    assert before.worst_usd is not None and before.expected_usd is not None and paid.cost_usd is not None
    assert paid.cost_usd == pytest.approx(12 * (PROMPT_TOKENS * 1e-6 + COMPLETION_TOKENS * 1e-5))
    assert paid.cost_usd <= before.worst_usd
    assert before.expected_usd < before.worst_usd
    assert paid.prompt_tokens <= before.worst_prompt_tokens
    assert paid.completion_tokens <= before.worst_completion_tokens == 1200


def test_a_finished_version_has_nothing_to_send_and_teaches_the_length_of_answers(scripted_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        asyncio.run(label(api_recipe(scripted_recipe, server)))
        done = estimate_labelling(api_recipe(scripted_recipe, server))
        more = estimate_labelling(api_recipe(scripted_recipe, server, samples=3))
    assert (done.answered, done.to_send, done.expected_usd, done.worst_usd) == (12, 0, 0.0, 0.0)
    assert (more.requests, more.answered, more.to_send) == (36, 12, 24)
    assert more.expected_completion_tokens == 24 * COMPLETION_TOKENS
    assert "words/v001" in more.basis
    assert more.spent_usd == pytest.approx(12 * (PROMPT_TOKENS * 1e-6 + COMPLETION_TOKENS * 1e-5))


def test_answers_of_a_run_that_was_stopped_count_as_answered(scripted_recipe: MakeRecipe) -> None:
    async def first_shard_only(recipe: Recipe) -> Estimate:
        with open_job(recipe) as job:
            await job.label_shard(0)
            await job.close()
            return estimate_labelling(recipe)  # beside the run that holds the dataset

    recipe = scripted_recipe()
    estimate = asyncio.run(first_shard_only(recipe))
    assert (estimate.answered, estimate.to_send) == (4, 8)


def test_time_is_that_of_the_tightest_limit(scripted_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        assert estimate_labelling(api_recipe(scripted_recipe, server)).seconds_at_limits is None
        limits = {"requests_per_minute": 6, "tokens_per_minute": 10**9}
        assert estimate_labelling(api_recipe(scripted_recipe, server, limits=limits)).seconds_at_limits == 120


def test_an_unknown_price_is_said_and_a_budget_on_it_is_refused(scripted_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        estimate = estimate_labelling(api_recipe(scripted_recipe, server, price=None))
        assert (estimate.expected_usd, estimate.worst_usd) == (None, None)
        with pytest.raises(RecipeError, match="the price of 'stand-in' is not known"):
            estimate_labelling(api_recipe(scripted_recipe, server, price=None, budget_usd=1))


def test_repeated_prompts_are_counted_apart(scripted_recipe: MakeRecipe, word_prompts: Path) -> None:
    word_prompts.write_text(word_prompts.read_text() * 2)
    estimate = estimate_labelling(scripted_recipe())
    assert (estimate.prompts, estimate.duplicate_prompts) == (12, len(WORDS))
