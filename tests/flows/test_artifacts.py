"""What a run shows in Prefect: its artifacts, while it runs and after, and what a failed run's page says."""

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillhouse.evaluation.evaluate import EvaluationResult
from stillhouse.evaluation.report.report import ReportFiles
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.evaluation.reports import BROKEN, SEPARATE
from tests.flows import PREFECTS_WARNINGS
from tests.stand_in import StandIn, running_stand_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    PREFECTS_WARNINGS,
]

RecipeFile = Callable[[Recipe], Path]
PRICE = {"input_usd_per_million": 1000.0, "output_usd_per_million": 1000.0}  # an answer of the stand-in is 3 cents


async def artifacts_of(recipe: Recipe) -> dict[str, Any]:
    """The newest artifact of each kind of a recipe, by what it shows."""
    from prefect.client.orchestration import get_client

    from stillhouse_flows.artifacts import artifact_key

    end = artifact_key("", recipe)
    async with get_client() as client:
        found = await client.read_latest_artifacts()
    return {str(one.key).removesuffix(end): one for one in found if str(one.key).endswith(end)}


def state_of(file: Path, *overrides: str) -> Any:
    """The final state of a run of the label flow."""
    from stillhouse_flows.label import label_flow

    return asyncio.run(label_flow(str(file), list(overrides), return_state=True))  # type: ignore[arg-type]


def test_every_recipe_has_keys_of_its_own_that_prefect_takes(scripted_recipe: MakeRecipe) -> None:
    from stillhouse_flows.artifacts import artifact_key

    names = ["a-b", "a.b", "a_b", "A-b", "a-b-", "Nightly_v2.1"]
    keys = [artifact_key("labels", scripted_recipe(name=name)) for name in names]
    assert len(set(keys)) == len(names)
    assert keys[0] == "labels-a-b"
    part = scripted_recipe(name="a-b", dataset={"root": "labels/a-b/parts", "name": "3f1c"})
    assert artifact_key("labels", part) == "part-labels-a-b"
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", key) for key in keys)


def test_a_run_shows_its_plan_its_end_its_rows_and_its_card(
    scripted_recipe: MakeRecipe, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    options = {"vocabulary": 64, "refuse": ["Explain otter."]}
    recipe = scripted_recipe(name="Shown_1", teacher={"kind": "scripted", "options": options})
    assert state_of(recipe_file(recipe)).is_completed()
    shown = asyncio.run(artifacts_of(recipe))
    assert set(shown) == {"plan", "labelling", "labels", "card"}
    assert "| requests | 12: 0 answered already, 12 to send |" in shown["plan"].data
    assert shown["labelling"].data == 100
    assert shown["labelling"].description.startswith("Labelling: 12 of 12, 1 rejected, ")
    assert '"rejected: refused", "count": "1"' in shown["labels"].data
    card = (tmp_path / "labels/words/v001/README.md").read_text()
    assert card.startswith("---\n")
    assert shown["card"].data.startswith("\n# words/v001\n")
    assert shown["card"].data.split() == card.split("\n---\n", 1)[1].split()  # the very words, in longer lines

    assert state_of(recipe_file(recipe)).is_completed()
    shown = asyncio.run(artifacts_of(recipe))
    assert "12 answered already, nothing to send" in shown["plan"].data
    assert "| answered before | 12 |" in shown["labelling"].description


def test_progress_is_shown_while_it_runs(
    api_recipe: MakeRecipe, recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse_flows import artifacts
    from stillhouse_flows.label import label_flow

    followed, held = StandIn._follow, threading.Event()

    async def follow(self: StandIn, request: Any, body: Any, prompt: str) -> Any:
        while "slowly" in prompt and not held.is_set():
            await asyncio.sleep(0.02)
        return await followed(self, request, body, prompt)

    monkeypatch.setattr(StandIn, "_follow", follow)
    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.1)
    prompts = [f"Name a colour, {number}." for number in range(4)]
    prompts += ["Name a weapon. !400policy*", "Name a bird, slowly.", "Name a fish, slowly."]

    async def shown_meanwhile(running: asyncio.Task[Any], recipe: Recipe) -> Any:
        while not running.done():
            shown = await artifacts_of(recipe)
            if "labelling" in shown and "| done | 5 of 7 |" in shown["labelling"].description:
                return shown["labelling"]
        raise AssertionError(f"it ended before anything was shown: {running}")

    async def whole(recipe: Recipe) -> tuple[Any, Any]:
        running = asyncio.create_task(label_flow(str(recipe_file(recipe))))
        try:
            async with asyncio.timeout(120):
                early = await shown_meanwhile(running, recipe)
        finally:
            held.set()
            await running
        return early, (await artifacts_of(recipe))["labelling"]

    with running_stand_in() as server:
        early, late = asyncio.run(whole(api_recipe(server.base_url, prompts, price=PRICE, budget_usd=10)))
    for line in ("| rejected | 1 |", "| in flight | 2 |", "| spent | $0.12 of $10.00 |"):
        assert line in early.description
    assert re.search(r"\| tokens/s, last minute \| \d+ \|\n\| tokens/s, whole run \| \d+ \|", early.description)
    assert re.search(r"\| time left \| \d+ s \|", early.description)
    assert early.data == 71.4  # of a hundred
    assert late.id == early.id
    assert late.data == 100
    assert "| spent | $0.18 of $10.00 |" in late.description
    assert "| in flight | 0 |" in late.description


def test_a_server_that_takes_no_artifact_fails_no_run(
    scripted_recipe: MakeRecipe,
    recipe_file: RecipeFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from prefect.client.orchestration import PrefectClient

    async def refuse(*_: Any, **__: Any) -> Any:
        raise httpx.ConnectError("nobody there")

    monkeypatch.setattr(PrefectClient, "create_artifact", refuse)
    recipe = scripted_recipe(name="unshown")
    assert state_of(recipe_file(recipe)).message == "words/v001: 12 requests sent, 0 answered before"
    assert asyncio.run(artifacts_of(recipe)) == {}
    assert "an artifact could not be published: ConnectError: nobody there" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "mend"),
    [
        (["label.sampling.temprature=1"], "Did you mean 'temperature'?"),
        (
            ["teacher.options.base_url=http://127.0.0.1:9/v1", "label.patience=0.5"],
            "no request has been answered for 0.5 s (label.patience); all answers so far are kept. "
            "Run again when the server works.",
        ),
        (["label.budget_usd=0.01"], "Raise it (--set label.budget_usd=...) and run again."),
    ],
    ids=["wrong recipe", "no teacher", "no money"],
)
def test_a_failed_run_says_the_mend_and_logs_no_traceback(
    overrides: list[str],
    mend: str,
    api_recipe: MakeRecipe,
    recipe_file: RecipeFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from stillhouse_flows.label import label_shard

    monkeypatch.setattr(label_shard, "retries", 0)
    with running_stand_in() as server:
        file = recipe_file(api_recipe(server.base_url, ["Name a colour."], price=PRICE))
        state = state_of(file, *overrides)
    assert state.is_failed()
    assert state.message.endswith(mend)
    assert mend in caplog.text
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith(("httpx", "aiohttp"))]


def test_a_broken_student_s_report_begins_with_what_is_wrong(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    from stillhouse_flows.artifacts import publish_report

    said = "This student is broken: 38 % of its answers repeat themselves (its teacher: 2 %), "
    for name, report in (("broken", BROKEN), ("sound", SEPARATE)):
        recipe = scripted_recipe(name=name)
        publish_report(EvaluationResult(report, ReportFiles.in_folder(tmp_path), fresh=True), recipe)
        shown = asyncio.run(artifacts_of(recipe))["report"]
        assert shown.data.startswith(
            f"# quick\n\n**{said}" if name == "broken" else "# quick\n\nThe white-box student has "
        )
        assert shown.data.index("(file:///") < shown.data.index("| model |")
        assert shown.description.startswith(f"Report of broken. {said}" if name == "broken" else "Report of sound")


def test_a_report_s_page_is_named_so_that_it_can_be_opened(tmp_path: Path) -> None:
    from stillhouse_flows.artifacts import _link

    page = tmp_path / "report.html"
    assert _link("Page", str(page)) == f"[Page]({page.as_uri()}): `{page}`"
    assert _link("Page", "https://example.org/report.html") == "[Page](https://example.org/report.html)"
    assert _link("Page", "s3://bucket/report.html") == "Page: `s3://bucket/report.html`"
