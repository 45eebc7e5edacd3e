"""Labelling by batch jobs: every end that a job may have, what is stored, what is asked again, and what is paid."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stillhouse.dataset.store import dataset_folder, journal_folder
from stillhouse.errors import BudgetSpent, JobsPending, RecipeError, StillhouseError, TeacherRefused
from stillhouse.labelling.batches import delivery
from stillhouse.labelling.batches.jobs import JobCard, read_jobs
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.stand_in import RunningStandIn, running_stand_in
from tests.stand_in_batches import Batches

PROMPTS = [f"Name colour {number}." for number in range(12)]
PRICE = {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0}
COST = (20 * 1.0 + 10 * 10.0) / 1e6 / 2  # of an answer of the stand-in, at half the price


@contextmanager
def provider(*ends: str, polls: int = 1) -> Iterator[RunningStandIn]:
    with running_stand_in(batches=Batches(ends=[*ends], polls=polls)) as server:
        yield server


def recipe_of(make: MakeRecipe, server: RunningStandIn, prompts: Any = PROMPTS, **settings: Any) -> Recipe:
    batch = {"poll": 0.02, **settings.pop("batch", {})}
    return make(
        server.base_url, prompts, price=PRICE, **{"delivery": "batch", "patience": 5, **settings, "batch": batch}
    )


def jobs_of(recipe: Recipe) -> list[JobCard]:
    return [job.card for job in read_jobs(journal_folder(recipe.dataset))]


def check(recipe: Recipe, server: RunningStandIn, *, billed: int, jobs: int, rejected: int = 0) -> None:
    """Every prompt has one outcome; what was billed is what was spent; nothing is left at the provider or lent."""
    result = asyncio.run(label(recipe))
    assert not result.fresh
    assert sum(result.dataset.manifest.rows.values()) == len(PROMPTS) - rejected
    assert sum(result.dataset.manifest.rejected.values()) == rejected
    assert not result.dataset.problems()
    assert server.stats.billed_answers == billed
    assert result.dataset.manifest.totals.spent_usd == pytest.approx(billed * COST)
    batches = server.server.batches
    assert len(batches.jobs) == len(jobs_of(recipe)) == jobs
    assert set(batches.submitted.values()) <= {1}
    assert not batches.files
    assert not any(card.is_open for card in jobs_of(recipe))
    assert sum(card.spent_usd for card in jobs_of(recipe)) == pytest.approx(billed * COST)


def test_all_prompts_are_answered_in_one_job_at_half_the_price(api_recipe: MakeRecipe) -> None:
    with provider(polls=3) as server:
        recipe = recipe_of(api_recipe, server)
        result = asyncio.run(label(recipe))
        assert (result.sent, result.reused) == (12, 0)
        assert server.stats.requests == 0  # online
        (card,) = jobs_of(recipe)
        assert (card.state, card.requests, card.answered, card.unanswered) == ("settled", 12, 12, 0)
        check(recipe, server, billed=12, jobs=1)


def test_an_answer_is_found_whichever_way_it_came(api_recipe: MakeRecipe) -> None:
    with provider() as server:
        asyncio.run(label(recipe_of(api_recipe, server, PROMPTS[:5])))
        online = asyncio.run(label(recipe_of(api_recipe, server, delivery="online")))
        assert (online.sent, online.reused) == (7, 5)
        again = asyncio.run(label(recipe_of(api_recipe, server, [*PROMPTS, "Another."])))
        assert (again.sent, again.reused) == (1, 12)
        assert server.stats.billed_answers == 13


@pytest.mark.parametrize(
    ("ends", "billed", "jobs"),
    [
        (["expired:5"], 12, 2),
        (["cancelled:0"], 12, 2),
        (["expired:5", "expired:1", "expired:0"], 12, 4),
        (["queue"], 12, 3),  # once more in two halves
        (["lost:3"], 12, 2),
        (["double"], 12, 1),
        (["cut"], 12, 1),
        (["deleted"], 24, 2),
    ],
    ids=str,
)
def test_every_end_of_a_job(api_recipe: MakeRecipe, ends: list[str], billed: int, jobs: int) -> None:
    with provider(*ends) as server:
        recipe = recipe_of(api_recipe, server)
        asyncio.run(label(recipe))
        assert set(server.stats.billed) == set(PROMPTS)
        if ends == ["deleted"]:  # what the provider says that it answered counts at the worst case
            assert server.stats.billed_answers == billed
            spent = sum(card.spent_usd for card in jobs_of(recipe))
            assert spent > 12 * COST + 12 * COST
            return
        check(recipe, server, billed=billed, jobs=jobs)


def test_a_line_that_fails_the_whole_job_is_rejected_and_the_rest_goes_again(api_recipe: MakeRecipe) -> None:
    with provider("bad-line:3") as server:
        recipe = recipe_of(api_recipe, server)
        result = asyncio.run(label(recipe))
        assert result.dataset.manifest.rejected == {"bad-request": 1}
        check(recipe, server, billed=11, jobs=2, rejected=1)


def test_errors_of_lines_are_those_of_single_requests(api_recipe: MakeRecipe) -> None:
    prompts = [*PROMPTS[:8], "a !400long*", "b !500 !503 !ok", "c !empty*", "d !400policy*"]
    with provider() as server:
        recipe = recipe_of(api_recipe, server, prompts)
        result = asyncio.run(label(recipe))
        assert result.dataset.manifest.rejected == {"too-long": 1, "empty": 1, "policy": 1}
        check(recipe, server, billed=10, jobs=3, rejected=3)


def test_a_request_that_fails_in_job_after_job_is_rejected(api_recipe: MakeRecipe) -> None:
    with provider() as server:
        recipe = recipe_of(api_recipe, server, [*PROMPTS[:11], "b !500*"])
        result = asyncio.run(label(recipe))
        assert result.dataset.manifest.rejected == {"batch": 1}
        check(recipe, server, billed=11, jobs=delivery.ATTEMPTS, rejected=1)


@pytest.mark.parametrize(
    ("ends", "word", "words"),
    [
        (["refused"], "", "does not support the batch endpoint"),
        ([], "!401*", "the API key is not accepted"),
        ([], "!400*", "all 12 requests"),
    ],
)
def test_what_every_request_would_get_ends_the_run_and_rejects_none(
    api_recipe: MakeRecipe, ends: list[str], word: str, words: str
) -> None:
    with provider(*ends) as server:
        recipe = recipe_of(api_recipe, server, [f"{prompt} {word}" for prompt in PROMPTS])
        with pytest.raises(TeacherRefused, match=words):
            asyncio.run(label(recipe))
        assert server.stats.billed_answers == 0
        (card,) = jobs_of(recipe)
        assert (card.state, card.rejected, card.spent_usd) == ("settled", 0, 0.0)


def test_an_account_that_runs_out_of_credit_keeps_what_was_answered(api_recipe: MakeRecipe) -> None:
    with provider() as server:
        recipe = recipe_of(api_recipe, server, [*PROMPTS[:7], *(f"{prompt} !quota" for prompt in PROMPTS[7:])])
        with pytest.raises(TeacherRefused, match="no credit"):
            asyncio.run(label(recipe))
        (card,) = jobs_of(recipe)
        assert (card.answered, card.rejected, card.unanswered) == (7, 0, 5)
        asyncio.run(label(recipe))  # with credit again
        check(recipe, server, billed=12, jobs=2)


def test_people_leave_and_come_back(api_recipe: MakeRecipe) -> None:
    with provider(polls=4) as server:
        recipe = recipe_of(api_recipe, server, batch={"requests": 5})
        with pytest.raises(JobsPending, match="3 batch jobs with 12 requests are at the provider"):
            asyncio.run(label(recipe, detach=True))
        assert [card.requests for card in jobs_of(recipe)] == [5, 5, 2]
        while True:
            try:
                asyncio.run(label(recipe, detach=True))
                break
            except JobsPending:
                pass
        check(recipe, server, billed=12, jobs=3)


def test_a_run_that_is_stopped_during_a_submission_still_notes_the_job(api_recipe: MakeRecipe) -> None:
    async def stopped(recipe: Recipe, server: RunningStandIn) -> None:
        running = asyncio.create_task(label(recipe))
        while not server.server.batches.uploads:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with provider() as server:
        server.server.batches.creation_seconds = 0.3
        recipe = recipe_of(api_recipe, server)
        asyncio.run(stopped(recipe, server))
        (card,) = jobs_of(recipe)
        assert (card.state, card.remote_id) == ("submitted", "batch-1")
        asyncio.run(label(recipe))
        check(recipe, server, billed=12, jobs=1)


def test_auto_asks_online_what_came_back_unanswered(api_recipe: MakeRecipe) -> None:
    with provider("expired:4") as server:
        recipe = recipe_of(api_recipe, server, delivery="auto")
        asyncio.run(label(recipe))
        assert server.stats.requests == 8
        assert len(server.server.batches.jobs) == 1
        assert server.stats.billed_answers == 12


def test_after_the_deadline_a_job_is_cancelled_and_the_rest_goes_online(api_recipe: MakeRecipe) -> None:
    with provider("completed:7", polls=5) as server:
        recipe = recipe_of(api_recipe, server, delivery="auto", batch={"deadline": 1e-9})
        asyncio.run(label(recipe))
        assert server.server.batches.jobs["batch-1"]["status"] == "cancelled"
        assert (server.stats.requests, server.stats.billed_answers) == (5, 12)


def test_a_budget_is_as_hard_as_online(api_recipe: MakeRecipe) -> None:
    with provider() as server:
        worst = recipe_of(api_recipe, server, PROMPTS[:1])
        asyncio.run(label(worst))
        each = jobs_of(worst)[0].worst_usd
        recipe = recipe_of(api_recipe, server, budget_usd=1.2 * each)
        with pytest.raises(BudgetSpent, match="a batch job with one request could cost"):
            asyncio.run(label(recipe))
        spent = [card.spent_usd for card in jobs_of(recipe)]
        assert sum(spent) == pytest.approx(server.stats.billed_answers * COST)
        assert sum(spent) <= 1.2 * each
        assert 3 < server.stats.billed_answers < 12  # what came cheaper than the worst case was spent again


def test_a_job_that_was_made_although_its_answer_got_lost_is_not_made_twice(api_recipe: MakeRecipe) -> None:
    with provider() as server:
        server.server.batches.refuse_creation = 1
        recipe = recipe_of(api_recipe, server)
        asyncio.run(label(recipe))
        check(recipe, server, billed=12, jobs=1)


def test_another_accounts_key_is_refused_by_name(api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(polls=100) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "first-key")
        recipe = recipe_of(api_recipe, server)
        with pytest.raises(JobsPending):
            asyncio.run(label(recipe, detach=True))
        monkeypatch.setenv("OPENAI_API_KEY", "second-key")
        with pytest.raises(RecipeError, match=r"submitted by another account \(http.* #[0-9a-f]{8}\)") as caught:
            asyncio.run(label(recipe))
        stored = (journal_folder(recipe.dataset) / "batches").rglob("job.json")
        told = [str(caught.value), *(file.read_text() for file in stored)]
        assert len(told) == 2
        assert not any(key in text for text in told for key in ("first-key", "second-key"))


def test_prompts_may_change_while_a_job_runs(api_recipe: MakeRecipe) -> None:
    with provider(polls=2) as server:
        with pytest.raises(JobsPending):
            asyncio.run(label(recipe_of(api_recipe, server), detach=True))
        other = recipe_of(api_recipe, server, [*PROMPTS[6:], "Another."])
        result = asyncio.run(label(other))
        assert sum(result.dataset.manifest.rows.values()) == 7
        assert server.stats.billed_answers == 13  # what was paid for stays in the journal
        whole = asyncio.run(label(recipe_of(api_recipe, server, [*PROMPTS, "Another."])))
        assert (whole.sent, server.stats.billed_answers) == (0, 13)


def test_open_jobs_are_collected_before_anything_is_sent_online(api_recipe: MakeRecipe) -> None:
    with provider(polls=2) as server:
        with pytest.raises(JobsPending):
            asyncio.run(label(recipe_of(api_recipe, server, PROMPTS[:8]), detach=True))
        online = recipe_of(api_recipe, server, delivery="online")
        asyncio.run(label(online))
        assert (server.stats.requests, server.stats.billed_answers, len(server.server.batches.jobs)) == (4, 12, 1)
        with pytest.raises(JobsPending):
            asyncio.run(label(recipe_of(api_recipe, server, [*PROMPTS, "One more."]), detach=True))
        raw = online.model_dump(mode="json", by_alias=True) | {"teacher": {"kind": "scripted", "model": "x"}}
        asyncio.run(label(Recipe.model_validate(raw)))  # another teacher: it says so, and leaves the job as it is
        assert [card.state for card in jobs_of(online)] == ["settled", "submitted"]


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"teacher": {"kind": "scripted", "model": "x"}}, "label.delivery"),
        ({"label": {"delivery": "batch", "runner": {"kind": "ray"}}}, "label.runner.kind"),
    ],
)
def test_what_has_no_batches_is_refused(api_recipe: MakeRecipe, changes: dict[str, Any], setting: str) -> None:
    with provider() as server:
        raw = recipe_of(api_recipe, server).model_dump(mode="json", by_alias=True)
        for part, values in changes.items():
            raw[part] = values if part == "teacher" else {**raw[part], **values}
        with pytest.raises(StillhouseError) as caught:
            asyncio.run(label(Recipe.model_validate(raw)))
        assert caught.value.setting == setting
        assert not server.server.batches.uploads
        assert not (dataset_folder(Recipe.model_validate(raw).dataset) / "batches").exists()


def test_a_server_without_batch_jobs_is_told_of(api_recipe: MakeRecipe) -> None:
    with provider() as server:
        server.server.batches.absent = True
        with pytest.raises(
            TeacherRefused, match=r"label\.delivery: http.* has no batch jobs.*404.*Set it to online"
        ) as told:
            asyncio.run(label(recipe_of(api_recipe, server)))
        assert told.value.setting == "label.delivery"
        asyncio.run(label(recipe_of(api_recipe, server, delivery="online")))  # nothing is left that must be waited for
        assert server.stats.billed_answers == 12


def test_a_full_queue_is_waited_for_and_jobs_keep_their_size(api_recipe: MakeRecipe) -> None:
    with provider("completed", "queue", polls=2) as server:
        recipe = recipe_of(api_recipe, server, batch={"requests": 6})
        asyncio.run(label(recipe))
        assert [card.requests for card in jobs_of(recipe)] == [6, 6, 6]
        check(recipe, server, billed=12, jobs=3)


def test_lines_that_nobody_asked_for_and_twice_are_told(
    api_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    with provider("double") as server, caplog.at_level(logging.WARNING):
        asyncio.run(label(recipe_of(api_recipe, server)))
    assert "1 lines name requests that it does not have, 12 came twice" in caplog.text
    assert Counter(server.stats.billed.values()) == {1: 12}
