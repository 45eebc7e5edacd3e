"""What every prompt would get ends a run and rejects nobody; what one prompt gets is its rejection."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tenacity import wait_fixed

from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.labelling import sender
from stillhouse.labelling.engine import label
from stillhouse.labelling.journal_view import JournalView
from stillhouse.labelling.result import LabelResult
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.rows import rows_by_prompt
from tests.stand_in import Canned, RunningStandIn, running_stand_in

MANY = [f"Name number {number}." for number in range(300)]
HANDFUL = 5  # label.refusals_in_a_row


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF", wait_fixed(0.01))


@pytest.fixture
def server() -> Iterator[RunningStandIn]:
    with running_stand_in() as running:
        yield running


def run(recipe: Recipe) -> LabelResult:
    return asyncio.run(label(recipe))


def answered(recipe: Recipe) -> int:
    view = JournalView(Path(recipe.dataset.root) / recipe.dataset.name)
    try:
        return len(list(view.ids()))
    finally:
        view.close()


def body(message: str, code: str | int | None = "400", **parts: str) -> str:
    return json.dumps({"error": {"message": message, "code": code, **parts}})


OF_EVERYBODY = [
    (400, '{"code": "invalid", "error": "Incorrect API key provided: abc"}'),
    (400, body("Your credit balance is too low to access the API.", "invalid_request_error")),
    (400, body("Unsupported parameter: 'max_tokens' is not supported with this model.", "400")),
    (400, body("Das Modell ist abgeschaltet.")),
    (400, body("tier upgrade required", None)),
    (422, '{"detail": [{"loc": ["body", "temperature"], "msg": "extra fields not permitted"}]}'),
    (405, "no such method"),
    (406, "no"),
    (407, "who are you?"),
    (410, body("this endpoint has been retired")),
    (415, "unsupported media type"),
    (421, "misdirected"),
    (451, "not in your country"),
    (402, body("pay first")),
    (429, body("you have no quota left", "insufficient_quota")),
]


@pytest.mark.parametrize(("status", "words"), OF_EVERYBODY)
@pytest.mark.parametrize("after", [0, 7])
def test_a_status_that_every_prompt_gets_ends_the_run_and_rejects_nobody(
    api_recipe: MakeRecipe, status: int, words: str, after: int
) -> None:
    with running_stand_in(canned=Canned(status, words, after)) as server:
        recipe = api_recipe(server.base_url, MANY, concurrency=4)
        with pytest.raises(TeacherRefused) as told:
            run(recipe)
        assert told.value.exit_status == 1
        assert str(status) in str(told.value)
        assert server.stats.requests <= after + 8 * HANDFUL
        assert answered(recipe) == server.stats.billed_answers
        server.server.canned = None
        result = run(recipe)
        assert result.dataset.manifest.rejected == {}
        assert max(server.stats.billed.values()) == 1


def test_prompts_that_are_all_too_long_end_the_run_and_are_not_rejected(api_recipe: MakeRecipe) -> None:
    words = body("This model's maximum context length is 16 tokens", "context_length_exceeded")
    with running_stand_in(canned=Canned(400, words)) as server:
        recipe = api_recipe(server.base_url, MANY, concurrency=4)
        with pytest.raises(TeacherRefused, match="in a row"):
            run(recipe)
        assert server.stats.requests < len(MANY)
        assert answered(recipe) == 0


def test_a_reason_that_the_server_names_is_believed_once_others_are_answered(
    server: RunningStandIn, api_recipe: MakeRecipe
) -> None:
    too_long = [f"Too long, number {number}. !400long*" for number in range(60)]  # asked first: they are the longest
    result = run(api_recipe(server.base_url, [*too_long, *MANY[:90]], concurrency=1, shard_size=200))
    assert result.dataset.manifest.rejected == {"too-long": 60}


def test_the_only_prompts_of_a_job_are_not_rejected_for_what_may_be_the_account_s(
    server: RunningStandIn, api_recipe: MakeRecipe
) -> None:
    recipe = api_recipe(server.base_url, ["One. !400", "Two. !400"])
    with pytest.raises(TeacherRefused, match=r"all 2 prompts.*label\.refusals_in_a_row"):
        run(recipe)
    assert {row["reason"] for row in rows_by_prompt(run(recipe).dataset).values()} == {None}


def test_prompts_that_are_at_fault_can_be_rejected_by_a_setting(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    prompts = [f"Number {number}. !400*" for number in range(40)]
    result = run(api_recipe(server.base_url, prompts, refusals_in_a_row=None))
    assert result.dataset.manifest.rejected == {"bad-request": 40}


def test_bad_prompts_among_good_ones_are_rejected_and_the_run_goes_on(
    server: RunningStandIn, api_recipe: MakeRecipe
) -> None:
    prompts = [f"Name number {n}.{' !400*' if n % 2 else ''}" for n in range(100)]
    result = run(api_recipe(server.base_url, prompts, concurrency=1, shard_size=2))
    assert result.dataset.manifest.rejected == {"bad-request": 50}


def test_a_server_that_fails_for_everybody_rejects_nobody(api_recipe: MakeRecipe) -> None:
    with running_stand_in(canned=Canned(500, "broken", 6)) as server:
        recipe = api_recipe(server.base_url, MANY, concurrency=8)
        with pytest.raises(TeacherUnavailable, match="returned 500"):
            run(recipe)
        assert answered(recipe) == server.stats.billed_answers >= 6  # more, where several came before it broke
        server.server.canned = None
        assert run(recipe).dataset.manifest.rejected == {}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ('data: {"choices": [{"delta": {"content": "Blue"}}]}\n\ndata: [DONE]\n', "text/event-stream"),
        ('event: message_start\ndata: {"type": "message_start"}\n', "text/event-stream"),
        ("<html>Sign in to the guest network</html>", "text/html"),
        ("[]", "application/json"),
        ('{"response": "Blue."}', "application/json"),
    ],
)
@pytest.mark.parametrize("count", [2, 300])
def test_a_body_that_can_never_be_read_ends_the_run(api_recipe: MakeRecipe, words: str, kind: str, count: int) -> None:
    with running_stand_in(canned=Canned(200, words, content_type=kind)) as server:
        recipe = api_recipe(server.base_url, MANY[:count], concurrency=4)
        with pytest.raises(TeacherUnavailable) as told:
            run(recipe)
        assert server.base_url in str(told.value) or "status 200" in str(told.value)
        assert server.stats.requests <= 20
        assert answered(recipe) == 0
