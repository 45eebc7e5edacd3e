"""On-policy rounds as flows: a run for each round, a labelling run with a task for each shard in it, and an artifact."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.flows import PREFECTS_WARNINGS
from tests.flows.test_flows import artifact, task_names
from tests.stages.rounds.test_rounds import on_policy, rollouts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    PREFECTS_WARNINGS,
]


async def flow_runs(name: str) -> list[str]:
    """The names of all runs of a flow that have completed."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter

    async with get_client() as client:
        found = await client.read_flow_runs(flow_filter=FlowFilter.model_validate({"name": {"any_": [name]}}))
    return sorted(run.name for run in found if run.state is not None and run.state.is_completed())


def test_each_round_is_a_run_and_a_schedule_adds_rounds(
    tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    from stillhouse_flows.distill import distill_flow
    from stillhouse_flows.label import label_flow

    file = str(recipe_file(on_policy(tiny_recipe, rounds=1)))
    asyncio.run(label_flow(file))
    *_, last = distill_flow(file)
    assert (last.card.variant, len(last.card.rounds)) == ("on-policy", 1)
    assert asyncio.run(flow_runs("round")) == ["round 1"]
    assert "| 1, kept |" in asyncio.run(artifact("rounds-test"))
    *_, more = distill_flow(file, ["on_policy.rounds=2"])
    assert [one.number for one in more.card.rounds] == [1, 2]
    assert asyncio.run(flow_runs("round")) == ["round 1", "round 1", "round 2"]
    assert sorted(task_name for task_name in asyncio.run(task_names("round")) if "train" in task_name)
    assert rollouts(on_policy(tiny_recipe), 2).manifest.rows == {"train": 4}
    assert "| 2" in asyncio.run(artifact("rounds-test"))
