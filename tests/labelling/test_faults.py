"""The engine against a server that fails as real ones do: every prompt ends once, with its reason, and is paid for once."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tenacity import wait_fixed

from stillhouse.errors import TeacherUnavailable
from stillhouse.labelling import engine, sender
from stillhouse.labelling.engine import label
from stillhouse.labelling.result import LabelResult
from stillhouse.labelling.sender import ATTEMPTS
from stillhouse.progress import Progress, silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import TeacherIdentity
from stillhouse.teachers.base import AttemptFailed, Outcome, Request, open_teacher
from tests.conftest import MakeRecipe
from tests.rows import rows_by_prompt
from tests.stand_in import RunningStandIn, running_stand_in

ORDINARY = ["Name a colour.", "Name a tree."]
HANDFUL = 8  # requests after which a run that cannot be answered must have stopped


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF", wait_fixed(0.02))


@pytest.fixture
def server() -> Iterator[RunningStandIn]:
    with running_stand_in() as running:
        yield running


def run(recipe: Recipe, progress: Progress = silent) -> LabelResult:
    return asyncio.run(label(recipe, progress))


def reasons(result: LabelResult) -> dict[str, str | None]:
    return {prompt: row["reason"] for prompt, row in rows_by_prompt(result.dataset).items()}


@pytest.mark.parametrize(
    ("word", "billed"),
    [
        ("429", 1),
        ("429:0.01", 1),
        ("429ms:10", 1),
        ("408", 1),
        ("500", 1),
        ("502", 1),
        ("503", 1),
        ("504", 1),
        ("529", 1),
        ("key500", 1),
        ("gone", 2),
        ("garbage", 2),
        ("reset", 2),
        ("truncated", 2),
        ("html", 2),
        ("halfjson", 2),
        ("nochoices", 2),
        ("key200", 1),
    ],
)
def test_a_fault_that_passes_costs_nobody_an_answer(
    server: RunningStandIn, api_recipe: MakeRecipe, word: str, billed: int
) -> None:
    prompt = f"Name a bird. !{word}"
    result = run(api_recipe(server.base_url, [*ORDINARY, prompt]))
    assert reasons(result) == dict.fromkeys([*ORDINARY, prompt])
    assert server.stats.seen[prompt] == 2
    assert server.stats.billed[prompt] == billed
    assert [server.stats.billed[ordinary] for ordinary in ORDINARY] == [1, 1]
    assert (result.sent, result.reused) == (3, 0)


@pytest.mark.parametrize(
    ("word", "reason", "attempts"),
    [
        ("400long*", "too-long", 1),
        ("400policy*", "policy", 1),
        ("400*", "bad-request", 1),
        ("500 !400*", "bad-request", 2),
        ("key400*", "bad-request", 1),
        ("null*", "empty", 1),
        ("empty*", "empty", 1),
        ("500*", "server-error", ATTEMPTS),
        ("408*", "server-error", ATTEMPTS),
        ("504*", "timeout", ATTEMPTS),
        ("gone*", "cut-off", ATTEMPTS),
        ("garbage*", "cut-off", ATTEMPTS),
        ("reset*", "cut-off", ATTEMPTS),
        ("truncated*", "cut-off", ATTEMPTS),
        ("html*", "malformed", ATTEMPTS),
        ("halfjson*", "malformed", ATTEMPTS),
        ("nochoices*", "malformed", ATTEMPTS),
        ("key200*", "malformed", ATTEMPTS),
    ],
)
def test_a_fault_that_stays_rejects_its_prompt_alone_and_says_why(
    server: RunningStandIn, api_recipe: MakeRecipe, word: str, reason: str, attempts: int
) -> None:
    prompt = f"Name a bird. !{word}"
    result = run(api_recipe(server.base_url, [*ORDINARY, prompt]))
    row = rows_by_prompt(result.dataset)[prompt]
    assert reasons(result) == {**dict.fromkeys(ORDINARY), prompt: reason}
    assert (row["stage"], row["attempts"], server.stats.seen[prompt]) == ("teacher", attempts, attempts)
    assert row["detail"]
    assert result.dataset.manifest.rejected == {reason: 1}
    again = run(api_recipe(server.base_url, [*ORDINARY, prompt]))
    assert again.sent == 0


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("length", {"finish_reason": "length"}),
        ("filter", {"finish_reason": "content_filter"}),
        ("nousage", {"prompt_tokens": None, "completion_tokens": None, "cost_usd": None}),
        ("reasoning", {"reasoning": "Skies are blue."}),
        ("slow", {"finish_reason": "stop", "prompt_tokens": 20, "completion_tokens": 10}),
    ],
)
def test_an_odd_answer_is_kept_as_it_is_and_asked_for_once(
    server: RunningStandIn, api_recipe: MakeRecipe, word: str, kept: dict[str, Any]
) -> None:
    server.server.latency = 0.01
    prompt = f"Name a bird. !{word}*"
    result = run(api_recipe(server.base_url, [*ORDINARY, prompt]))
    row = rows_by_prompt(result.dataset)[prompt]
    assert row["reason"] is None
    assert {name: row[name] for name in kept} == kept
    assert server.stats.seen[prompt] == 1


def test_an_empty_answer_is_rejected_with_what_it_cost(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 1.0}
    result = run(api_recipe(server.base_url, ["Say nothing. !empty*"], price=price))
    (row,) = rows_by_prompt(result.dataset).values()
    assert (row["prompt_tokens"], row["completion_tokens"]) == (20, 10)
    assert row["cost_usd"] == pytest.approx(30e-6)


def test_time_limits_hold_for_what_hangs_and_for_what_drips(
    server: RunningStandIn, api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "ATTEMPTS", 2)
    prompts = ["Wait. !hang", "Wait long. !hang*", "Wait for drops. !drip*"]
    limits = {"timeouts": {"read": 0.5, "total": 1.0}}
    result = run(api_recipe(server.base_url, [*ORDINARY, *prompts], options=limits))
    assert reasons(result) == {
        **dict.fromkeys([*ORDINARY, prompts[0]]),
        prompts[1]: "timeout",
        prompts[2]: "timeout",
    }
    details = [rows_by_prompt(result.dataset)[prompt]["detail"] for prompt in prompts[1:]]
    assert "no answer in 0.5 s" in details[0]
    assert "no answer in 1 s" in details[1]


@pytest.mark.parametrize("word", ["401", "key401", "403", "404", "quota", "moved"])
def test_what_concerns_everybody_stops_the_run_after_a_handful(
    server: RunningStandIn, api_recipe: MakeRecipe, word: str
) -> None:
    prompts = [f"Name number {number}. !{word}*" for number in range(500)]
    with pytest.raises(TeacherUnavailable, match=server.base_url) as told:
        run(api_recipe(server.base_url, prompts))
    assert told.value.exit_status == 1
    assert server.stats.requests <= HANDFUL
    assert server.stats.billed_answers == 0


def test_a_key_that_ends_in_mid_run_loses_no_answer(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    server.server.latency = 0.02
    prompts = [f"Name number {number}." for number in range(40)]
    recipe = api_recipe(server.base_url, [*prompts, "x !401"], concurrency=4)  # the shortest is asked last
    with pytest.raises(TeacherUnavailable, match="returned 401"):
        run(recipe)
    result = run(recipe)
    assert result.sent + result.reused == 41
    assert reasons(result) == dict.fromkeys([*prompts, "x !401"])
    assert max(server.stats.billed.values()) == 1


def test_a_server_that_dies_and_returns_is_waited_for(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    server.server.latency = 0.02
    prompts = [f"Name number {number}." for number in range(120)]
    began = threading.Event()

    def outage() -> None:
        began.wait(timeout=30)
        server.stop()
        time.sleep(1.0)
        server.start()

    def progress(activity: str, done: int, total: int) -> None:
        if done >= 20:
            began.set()

    thread = threading.Thread(target=outage)
    thread.start()
    result = run(api_recipe(server.base_url, prompts, concurrency=8), progress)
    thread.join()
    assert reasons(result) == dict.fromkeys(prompts)
    assert result.sent == 120
    assert server.stats.billed_answers - 120 <= 8  # what was on its way when it died
    assert result.dataset.problems() == []


def test_a_server_that_stays_away_ends_the_run_and_what_was_answered_is_kept(
    server: RunningStandIn, api_recipe: MakeRecipe
) -> None:
    prompts = [f"Name number {number}." for number in range(20)]
    run(api_recipe(server.base_url, prompts[:5]))
    server.stop()
    with pytest.raises(TeacherUnavailable, match=r"cannot be reached.*label\.patience"):
        run(api_recipe(server.base_url, prompts, patience=0.3))
    server.start()
    result = run(api_recipe(server.base_url, prompts, patience=0.3))
    assert (result.sent, result.reused) == (15, 5)
    assert reasons(result) == dict.fromkeys(prompts)


def test_a_wait_longer_than_the_patience_ends_the_run_at_once(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    prompts = [*ORDINARY, "Come back tomorrow. !429:86400"]
    with pytest.raises(TeacherUnavailable, match=r"label\.patience is 300: .* asks to wait 86,400 s"):
        run(api_recipe(server.base_url, prompts))
    result = run(api_recipe(server.base_url, prompts))
    assert reasons(result) == dict.fromkeys(prompts)
    assert max(server.stats.billed.values()) == 1


def test_what_the_server_turns_away_counts_not_among_the_attempts_of_a_prompt(
    server: RunningStandIn, api_recipe: MakeRecipe
) -> None:
    prompt = f"Name a bird. {'!429ms:1 ' * (ATTEMPTS + 1)}!500"
    result = run(api_recipe(server.base_url, [*ORDINARY, prompt]))
    assert reasons(result) == dict.fromkeys([*ORDINARY, prompt])
    assert server.stats.seen[prompt] == ATTEMPTS + 3


def test_patience_begins_anew_with_every_answer(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    """Every second prompt is turned away once, for longer in all than the patience; those between are answered."""
    prompts = [f"{letter * (200 - 20 * n)}{' !429:0.15' if n % 2 == 0 else ''}" for n, letter in enumerate("abcdefgh")]
    recipe = api_recipe(server.base_url, prompts, concurrency=1, patience=0.2)
    in_one_shard = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"holdout": 0.0})})
    result = run(in_one_shard)  # the longest is asked first
    assert reasons(result) == dict.fromkeys(prompts)
    assert [prompt for _, prompt in server.stats.arrivals][:4] == prompts[:4]


@pytest.mark.parametrize("unit", [1, 1000])
@pytest.mark.parametrize(("ahead", "ends"), [(0.5, False), (86_400, True)])
def test_a_point_of_time_is_waited_for_and_not_half_a_century(
    server: RunningStandIn, api_recipe: MakeRecipe, unit: int, ahead: float, ends: bool
) -> None:
    moment = int((time.time() + ahead) * unit)
    prompts = [f"Name a very long word. !429:{moment}", *ORDINARY]
    if ends:
        with pytest.raises(TeacherUnavailable, match=r"label\.patience is 300: .* asks to wait 86,[34]\d\d s"):
            run(api_recipe(server.base_url, prompts))
    else:
        assert set(reasons(run(api_recipe(server.base_url, prompts, patience=5))).values()) == {None}


@pytest.mark.parametrize("word", ["429:0.7", "429ms:700", "503:0.7", "remaining:0.7*"])
def test_the_wait_that_a_server_asks_for_is_kept_by_all(
    server: RunningStandIn, api_recipe: MakeRecipe, word: str
) -> None:
    """One prompt meets it, and the others that are in flight: of a hundred, only what was sent before comes meanwhile."""
    server.server.latency = 0.02
    told = f"Name a very, very long word, which is asked for first. !{word}"
    result = run(api_recipe(server.base_url, [told, *(f"Name number {n}." for n in range(100))], concurrency=4))
    assert set(reasons(result).values()) == {None}
    asked_to_wait = next(moment for moment, prompt in server.stats.arrivals if prompt == told) + server.server.latency
    meanwhile = [moment for moment, _ in server.stats.arrivals if asked_to_wait < moment < asked_to_wait + 0.7]
    assert len(meanwhile) <= 8
    assert server.stats.requests > 100


def test_a_quota_that_is_used_up_for_a_day_delays_no_run_beyond_its_patience(
    server: RunningStandIn, api_recipe: MakeRecipe
) -> None:
    prompts = ["Name a very long word. !remaining:86400", "Name a bird."]
    result = run(api_recipe(server.base_url, prompts, concurrency=1, patience=0.2))
    assert set(reasons(result).values()) == {None}


def test_the_server_s_own_limit_is_found(api_recipe: MakeRecipe) -> None:
    """It bears 8 at once, the recipe allows 64: few are turned away (without a pace, more than there are prompts)."""
    prompts = [f"Name number {number}." for number in range(400)]
    refused_at: dict[int, int] = {}
    with running_stand_in(latency=0.02, capacity=8) as server:

        def progress(activity: str, done: int, total: int) -> None:
            refused_at[done] = server.stats.requests - server.stats.billed_answers

        result = run(api_recipe(server.base_url, prompts, concurrency=64, shard_size=400), progress)
        assert reasons(result) == dict.fromkeys(prompts)
        assert max(server.stats.billed.values()) == 1
        assert server.stats.most_at_once > 8
        assert refused_at[400] - refused_at[200] < 50


def test_requests_a_minute_are_kept(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    """600 a minute are 10 a second, and the bucket holds one second's: 25 take 1.5 seconds at the least."""
    began = time.monotonic()
    run(
        api_recipe(
            server.base_url,
            [f"Name number {n}." for n in range(25)],
            limits={"requests_per_minute": 600},
            concurrency=25,
        )
    )
    assert time.monotonic() - began >= 1.4
    assert server.stats.requests == 25


class Gate:
    """A teacher whose every attempt waits for `opened` and then fails."""

    batch_size, parallel, price = 1, None, None

    def __init__(self, identity: TeacherIdentity) -> None:
        self.identity = identity
        self.calls = 0
        self.opened = asyncio.Event()

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        self.calls += 1
        await self.opened.wait()
        raise AttemptFailed("server-error", "the gate is shut")

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("turns", [1, 100])  # of the event loop, until what is under way fails
def test_a_stopped_run_makes_no_new_attempts_and_rejects_nobody_for_it(
    server: RunningStandIn, api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    prompts = [f"Name number {number}." for number in range(50)]
    recipe = api_recipe(server.base_url, prompts)

    async def stopped(patch: pytest.MonkeyPatch) -> int:
        gate = Gate(open_teacher(recipe.teacher, recipe.label, recipe.seed).identity)
        patch.setattr(engine, "open_teacher", lambda *_: gate)
        run = asyncio.create_task(label(recipe))
        while gate.calls < 4:
            await asyncio.sleep(0)
        run.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await run
        return gate.calls

    with monkeypatch.context() as patch:
        assert asyncio.run(stopped(patch)) == 4
    result = run(recipe)
    assert (result.sent, reasons(result)) == (50, dict.fromkeys(prompts))


def test_an_answer_is_held_against_the_schema_that_it_was_asked_for_in(api_recipe: MakeRecipe) -> None:
    schema = {"type": "object", "required": ["colour"], "properties": {"colour": {"type": "string"}}}
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    for text, reason in [('{"colour": "blue"}', None), ('{"color": "blue"}', "json-schema"), ("Blue.", "json-schema")]:
        with running_stand_in(text=text) as server:
            result = run(api_recipe(server.base_url, ["Name a colour."], response_format=asked))
            assert reasons(result) == {"Name a colour.": reason}
            assert server.stats.bodies[0]["response_format"] == asked


def test_token_log_probabilities_lie_in_the_rows(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    (row,) = rows_by_prompt(run(api_recipe(server.base_url, ["Name a colour."], top_logprobs=2)).dataset).values()
    top = [{"token": "Red", "logprob": -1.5}]
    assert row["token_logprobs"] == [
        {"token": token, "logprob": -0.5, "top": [{"token": token, "logprob": -0.5}, *top]} for token in ("Blue", ".")
    ]


def test_samples_of_one_prompt_are_asked_and_kept_apart(server: RunningStandIn, api_recipe: MakeRecipe) -> None:
    result = run(api_recipe(server.base_url, ORDINARY, samples=3))
    assert sum(result.dataset.manifest.rows.values()) == 6
    assert dict(server.stats.billed) == dict.fromkeys(ORDINARY, 3)
