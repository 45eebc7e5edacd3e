"""What labelling tells of itself: counts, rates, dollars, the time left, and the estimate of an open job."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stillhouse.labelling.engine import label, open_job
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.labelling.metrics import Counts, Meter, Metrics
from stillhouse.progress import PlainProgress
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.stand_in import COMPLETION_TOKENS, PROMPT_TOKENS, running_stand_in

PRICE = {"input_usd_per_million": 1000.0, "output_usd_per_million": 1000.0}
ANSWER_USD = (PROMPT_TOKENS + COMPLETION_TOKENS) / 1000


def test_rates_are_those_of_the_last_minute_and_time_left_follows_from_them() -> None:
    counts = Counts(started_at=100.0)
    meter = Meter(counts)

    def look(now: float) -> Metrics:
        return meter.snapshot(requests=1000, done=counts.answered + 100, spent_usd=0.0, budget_usd=None, now=now)

    assert look(100.0).seconds_left is None
    counts.answered, counts.completion_tokens = 100, 1000
    fast = look(110.0)
    assert (fast.tokens_per_second, fast.mean_tokens_per_second, fast.seconds_left) == (100.0, 100.0, 80.0)
    assert fast.earlier == 100
    look(150.0)
    counts.answered, counts.completion_tokens = 150, 1500
    slow = look(200.0)  # a minute ago is between the samples of 110 and 150; the last before it counts
    assert slow.tokens_per_second == pytest.approx(500 / 90)
    assert slow.mean_tokens_per_second == pytest.approx(15.0)
    assert slow.seconds_left == pytest.approx(750 / (50 / 90))


def test_looks_that_are_kept_stay_few_however_often_somebody_looks() -> None:
    counts = Counts(started_at=0.0, answered=1)
    meter = Meter(counts)
    for tick in range(20_000):
        meter.snapshot(10, 1, 0.0, None, now=tick / 50)
    assert len(meter._samples) <= 62


def test_what_is_naught_or_not_known_is_left_out() -> None:
    nothing = Metrics(12, 0, 0, 0, 0, 0, None, None, 0.0, None, None)
    assert (str(nothing), nothing.share) == ("0 of 12", 0.0)
    assert Metrics(0, 0, 0, 0, 0, 0, None, None, 0.0, None, None).share == 1.0  # no prompts: it is all done
    much = Metrics(5000, 1200, 200, 14, 64, 99, 812.4, 790.0, 0.42, 5.0, 170.0)
    assert str(much) == "1,200 of 5,000, 3 min left, 14 rejected, 812 tokens/s, $0.42, 64 in flight"


def labelled_metrics(recipe: Recipe) -> Metrics:
    """Label a recipe; what the job tells at its end."""

    async def work() -> Metrics:
        with open_job(recipe) as job:
            await job.run(job.label_shard)
            await job.close()
            job.commit()
            return job.metrics()

    return asyncio.run(work())


def test_a_job_counts_answers_rejections_tokens_and_dollars(api_recipe: MakeRecipe) -> None:
    prompts = ["Name a colour.", "Name a bird. !429ms:1", "Name a weapon. !400policy*", "Name a tree. !empty*"]
    with running_stand_in() as server:
        first = labelled_metrics(api_recipe(server.base_url, prompts, price=PRICE, budget_usd=10))
        assert (first.requests, first.done, first.earlier, first.in_flight) == (4, 4, 0, 0)
        assert first.rejected == 2
        assert first.completion_tokens == COMPLETION_TOKENS * 3  # an empty answer is paid for, a refusal is not
        assert first.spent_usd == pytest.approx(3 * ANSWER_USD)
        assert (first.budget_usd, first.share) == (10, 1.0)
        again = labelled_metrics(api_recipe(server.base_url, [*prompts, "Name a fish."], price=PRICE, budget_usd=10))
    # the new one is asked, and the one that got no answer at all
    assert (again.requests, again.done, again.earlier, again.rejected) == (5, 5, 3, 1)
    assert again.completion_tokens == COMPLETION_TOKENS
    assert again.spent_usd == pytest.approx(4 * ANSWER_USD)


def test_an_open_job_estimates_what_plan_estimates_without_reading_the_prompts_again(
    scripted_recipe: MakeRecipe, word_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = scripted_recipe()

    async def one_shard() -> None:
        with open_job(recipe) as job:
            await job.label_shard(0)
            await job.close()

    def compare() -> int:
        expected = estimate_labelling(recipe)
        with open_job(recipe) as job, monkeypatch.context() as patched:
            patched.setattr(
                "stillhouse.labelling.plan.read_prompts", lambda *_: pytest.fail("the prompts are read again")
            )
            assert job.estimate() == expected
        return expected.to_send

    assert compare() == 12
    asyncio.run(one_shard())
    assert compare() == 8
    asyncio.run(label(recipe))
    assert compare() == 0
    with word_prompts.open("a") as lines:
        lines.write(json.dumps({"word": "anchor", "reference": "A thing."}) + "\n")
    assert compare() == 1


def test_plain_lines_tell_what_a_job_tells_besides(api_recipe: MakeRecipe) -> None:
    lines: list[str] = []
    with running_stand_in() as server:
        recipe = api_recipe(server.base_url, ["Name a colour.", "Name a weapon. !400policy*"], price=PRICE)
        asyncio.run(label(recipe, PlainProgress(lines.append)))
    assert lines[0] == "Labelling: 0 of 2"
    assert lines[-1].startswith("Labelling: 2 of 2, 1 rejected, ")
    assert lines[-1].endswith(" tokens/s, $0.03")


def test_other_activities_tell_nothing_of_it() -> None:
    lines: list[str] = []
    progress = PlainProgress(lines.append)
    words: Callable[[], Sequence[str]] = lambda: ["3 rejected"]  # noqa: E731
    progress.tell_more("Labelling", words)
    progress("Training", 1, 2)
    progress("Labelling", 1, 2)
    assert lines == ["Training: 1 of 2", "Labelling: 1 of 2, 3 rejected"]
