"""`label --retry-rejected`: what a teacher's error rejected is asked again, under the same plan, in a new version."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tenacity import wait_fixed
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.errors import TeacherUnavailable, UsageError
from stillhouse.labelling import sender
from stillhouse.labelling.engine import label
from stillhouse.labelling.result import LabelResult
from stillhouse.labelling.retrying import Retry
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.rows import rows_by_prompt
from tests.stand_in import Canned, RunningStandIn, running_stand_in

GOOD = ["Name a colour.", "Name a tree."]
LONG, ODD, EMPTY = "Long. !400long", "Odd. !400", "Empty. !empty"  # refused the first time they are asked
ALL = [*GOOD, LONG, ODD, EMPTY]


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF", wait_fixed(0.01))


@pytest.fixture
def server() -> Iterator[RunningStandIn]:
    with running_stand_in() as running:
        yield running


def run(recipe: Recipe, reasons: Sequence[str] | None = None) -> LabelResult:
    return asyncio.run(label(recipe, retry=Retry.from_reasons(reasons)))


def reasons(result: LabelResult) -> dict[str, str | None]:
    return {prompt: row["reason"] for prompt, row in rows_by_prompt(result.dataset).items()}


@pytest.mark.parametrize(
    ("named", "left", "sent"),
    [
        ([], {EMPTY: "empty"}, 2),
        (["bad-request"], {LONG: "too-long", EMPTY: "empty"}, 1),
        (["bad-request", "empty"], {LONG: "too-long"}, 2),
    ],
)
def test_what_was_rejected_is_asked_again_in_a_new_version(
    server: RunningStandIn, api_recipe: MakeRecipe, named: list[str], left: dict[str, str], sent: int
) -> None:
    recipe = api_recipe(server.base_url, ALL)
    first = run(recipe)
    assert first.rejected_by_teacher == 2
    assert run(recipe).fresh is False
    again = run(recipe, named)
    assert (again.dataset.manifest.version, again.sent, again.reused) == (2, sent, 5 - sent)
    assert again.dataset.manifest.plan_sha256 == first.dataset.manifest.plan_sha256
    assert again.dataset.manifest.parents == ("api/v001",)
    assert reasons(again) == dict.fromkeys(ALL) | left
    assert [server.stats.billed[prompt] for prompt in GOOD] == [1, 1]
    assert run(recipe).fresh is False


def test_a_retry_with_nothing_to_ask_makes_no_version(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    recipe = api_recipe(server.base_url, GOOD)
    run(recipe)
    assert run(recipe, []).fresh is False


def test_a_reason_that_nothing_was_rejected_for_is_refused(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    recipe = api_recipe(server.base_url, ALL)
    run(recipe)
    with pytest.raises(UsageError, match=r"'timeout'.*bad-request \(1\), empty \(1\), too-long \(1\)"):
        run(recipe, ["timeout"])
    assert run(recipe).dataset.manifest.version == 1


@pytest.mark.parametrize("flag", [None, ["bad-request"]])
def test_a_retry_that_was_stopped_goes_on_and_pays_nothing_twice(
    api_recipe: MakeRecipe, flag: list[str] | None
) -> None:
    odd = [f"Odd {number}. !400" for number in range(12)]
    with running_stand_in() as server:
        recipe = api_recipe(server.base_url, [*GOOD, *odd], refusals_in_a_row=None, concurrency=1, shard_size=4)
        run(recipe)
        server.server.canned = Canned(401, "{}", after=2 + 5)  # the key ends after five of them
        with pytest.raises(TeacherUnavailable):
            run(recipe, ["bad-request"])
        server.server.canned = None
        result = run(recipe, flag)
        assert (result.dataset.manifest.version, result.sent) == (2, 7)
        assert set(reasons(result).values()) == {None}
        assert max(server.stats.billed.values()) == 1


def test_the_command_asks_again_and_tells_how(
    server: RunningStandIn, api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    file = str(recipe_file(api_recipe(server.base_url, ALL)))
    first = CliRunner().invoke(app, ["label", file, "--no-flow"])
    assert "2 requests: fix the cause, then send them again with --retry-rejected" in " ".join(first.output.split())
    told = CliRunner().invoke(app, ["label", file, "timeout", "--no-flow"])
    assert (told.exit_code, "--retry-rejected" in told.output) == (2, True)
    done = CliRunner().invoke(
        app, ["label", file, "--retry-rejected", "bad-request", "too-long", "--no-flow", "--json"]
    )
    assert json.loads(done.stdout)["sent"] == 2
