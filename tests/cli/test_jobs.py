"""`stillhouse label --detach` and `stillhouse jobs`, as people use them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.cli.main import app
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.labelling.batches.test_batches import COST, provider, recipe_of


def run(*arguments: str) -> int:
    return int(app([*arguments], standalone_mode=False) or 0)


def test_submitted_left_listed_cancelled_and_collected(
    api_recipe: MakeRecipe,
    recipe_file: Callable[[Recipe], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = str(tmp_path / "labels")
    with provider("completed", "completed:2", polls=3) as server:
        file = str(recipe_file(recipe_of(api_recipe, server, batch={"requests": 6})))
        assert run("jobs", "list", "--root", root) == 0
        assert "no batch job in" in capsys.readouterr().out
        assert run("label", file, "--no-flow", "--detach") == 0
        said = capsys.readouterr().out
        assert "2 batch jobs with 12 requests are at the provider. Run the same command again" in said.replace(
            "\n", " "
        )
        assert run("label", file, "--no-flow", "--detach", "--json") == 0
        assert json.loads(capsys.readouterr().out)["pending"]["kind"] == "JobsPending"
        assert run("jobs", "list", "--root", root, "--json") == 0
        jobs = json.loads(capsys.readouterr().out)["jobs"]
        assert [(one["dataset"], one["state"], one["requests"]) for one in jobs] == [("api", "submitted", 6)] * 2
        assert run("jobs", "list", "--root", root) == 0
        assert "submitted, in_progress  6 " in capsys.readouterr().out
        assert run("jobs", "show", jobs[1]["id"][:6], "--root", root) == 0
        assert "at most $" in capsys.readouterr().out
        assert run("jobs", "cancel", file, "nothing") == 2
        assert "has no running job of this id" in capsys.readouterr().err
        assert run("jobs", "cancel", file, jobs[1]["id"]) == 0
        assert f"cancelled {jobs[1]['id']}" in capsys.readouterr().out
        assert run("label", file, "--no-flow") == 0  # 6, 2 and the 4 of another job
        assert run("jobs", "list", "--root", root, "--json") == 0
        told = json.loads(capsys.readouterr().out.split("\n", 1)[1])["jobs"]
        assert [(one["answered"], one["unanswered"]) for one in told] == [(6, 0), (2, 4), (4, 0)]
        assert sum(one["spent_usd"] for one in told) == pytest.approx(12 * COST)
        assert run("jobs", "cancel", file) == 0
        assert "no job is running" in capsys.readouterr().out
        assert run("jobs", "show", "zz", "--root", root) == 2


def test_a_plan_shows_both_prices(api_recipe: MakeRecipe) -> None:
    with provider() as server:
        estimate = estimate_labelling(recipe_of(api_recipe, server, delivery="online"))
        assert estimate.expected_usd and estimate.worst_usd
        assert estimate.batch_usd == pytest.approx(estimate.expected_usd / 2)
        assert estimate.worst_batch_usd == pytest.approx(estimate.worst_usd / 2)
        assert "by batch jobs" in str(estimate)
