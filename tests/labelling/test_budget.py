"""The budget, held against what the server counts: no dollar over it, whatever fails and whoever is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tenacity import wait_fixed

from stillhouse.dataset.store import dataset_folder, versions
from stillhouse.errors import BudgetSpent, RecipeError, StorageFailed, TeacherUnavailable
from stillhouse.labelling import engine, sender
from stillhouse.labelling.budget import Budget, Reservation
from stillhouse.labelling.engine import label
from stillhouse.labelling.journal import Change, Journal
from stillhouse.labelling.journal_view import JournalView
from stillhouse.labelling.leases import Leases
from stillhouse.labelling.result import LabelResult
from stillhouse.labelling.tokens import likely_prompt_tokens, likely_tokens, most_prompt_tokens
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Message, Prompt, TeacherIdentity
from stillhouse.teachers.base import AnswerSettings, Request
from stillhouse.teachers.prices import FlatPrice
from tests.conftest import MakeRecipe
from tests.paths import ROOT
from tests.rows import rows_by_prompt
from tests.stand_in import COMPLETION_TOKENS, PROMPT_TOKENS, RunningStandIn, running_stand_in

PRICE = {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0}
ANSWER_USD = PROMPT_TOKENS * 1e-6 + COMPLETION_TOKENS * 1e-5  # as the server bills it
MAX_TOKENS = 16
TERMS = AnswerSettings(TeacherIdentity("openai", "stand-in"), None)
DUST = 1e-9


def request_for(text: str) -> Request:
    return Request(Prompt((Message("user", text),)), 0, TERMS)


def worst_usd(text: str) -> float:
    """What one attempt at a prompt can cost at the most, by the price of these tests."""
    return most_prompt_tokens(request_for(text)) * 1e-6 + MAX_TOKENS * 1e-5


@pytest.fixture
def server() -> Iterator[RunningStandIn]:
    with running_stand_in(latency=0.002) as running:
        yield running


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF", wait_fixed(0.01))


@pytest.fixture
def budgeted(api_recipe: MakeRecipe, server: RunningStandIn) -> MakeRecipe:
    """Makes recipes with a price and a budget in dollars for the server of the test."""

    def make(prompts: Sequence[str], budget_usd: float | None, **label_parts: Any) -> Recipe:
        return api_recipe(
            server.base_url,
            prompts,
            price=PRICE,
            budget_usd=budget_usd,
            sampling={"max_tokens": MAX_TOKENS},
            **label_parts,
        )

    return make


def run(recipe: Recipe) -> LabelResult:
    return asyncio.run(label(recipe))


def spent_usd(recipe: Recipe) -> float:
    with closing(JournalView(dataset_folder(recipe.dataset))) as journal:
        return journal.spent()


def billed_usd(server: RunningStandIn) -> float:
    return server.stats.billed_answers * ANSWER_USD


# ---------------------------------------------------------------------------------------------- against the server's count


@pytest.mark.parametrize("word", ["", "!reset", "!halfjson", "!nousage", "!nochoices", "!500", "!429ms:1", "!reset*"])
def test_the_server_never_bills_more_than_the_budget(server: RunningStandIn, budgeted: MakeRecipe, word: str) -> None:
    prompts = [f"Question {n}? {word if n % 2 else ''}" for n in range(150)]
    recipe = budgeted(prompts, 0.01, concurrency=64, shard_size=20)
    with pytest.raises(BudgetSpent, match=r"label\.budget_usd is 0\.01: \$0\.\d+ have been spent.*Raise it"):
        run(recipe)
    assert billed_usd(server) <= spent_usd(recipe) + DUST <= 0.01 + 2 * DUST
    assert spent_usd(recipe) + max(map(worst_usd, prompts)) > 0.01  # and stops no earlier than it must


def test_a_higher_budget_goes_on_and_asks_nothing_again(server: RunningStandIn, budgeted: MakeRecipe) -> None:
    prompts = [f"Question {n}?" for n in range(120)]
    for budget in (0.003, 0.006, 0.009):
        with pytest.raises(BudgetSpent):
            run(budgeted(prompts, budget, concurrency=64, shard_size=20))
        assert billed_usd(server) <= budget + DUST
    before = server.stats.billed_answers
    result = run(budgeted(prompts, 1.0, concurrency=64, shard_size=20))
    assert (result.sent, result.reused) == (120 - before, before)
    assert set(server.stats.seen.values()) == {1}
    assert len(rows_by_prompt(result.dataset)) == 120
    assert result.dataset.manifest.totals.spent_usd == pytest.approx(120 * ANSWER_USD)


def test_requests_that_do_not_fit_together_go_one_after_another(server: RunningStandIn, budgeted: MakeRecipe) -> None:
    prompts = [f"Question {n}?" for n in range(9)]
    result = run(budgeted(prompts, worst_usd(prompts[0]) + 8.5 * ANSWER_USD, concurrency=64))
    assert result.sent == 9
    assert server.stats.most_at_once <= 3  # as money comes back, two or three fit


def test_what_earlier_versions_cost_counts(server: RunningStandIn, budgeted: MakeRecipe) -> None:
    first = [f"Question {n}?" for n in range(20)]
    run(budgeted(first, None))
    assert spent_usd(budgeted(first, None)) == pytest.approx(20 * ANSWER_USD)
    with pytest.raises(BudgetSpent):
        run(budgeted([*first, "One more?"], 20 * ANSWER_USD))
    assert server.stats.seen["One more?"] == 0
    second = run(budgeted([*first, "One more?"], 20 * ANSWER_USD + worst_usd("One more?")))
    assert (second.sent, second.dataset.manifest.label) == (1, "api/v002")
    assert second.dataset.manifest.totals.spent_usd == pytest.approx(21 * ANSWER_USD)


def test_a_budget_that_is_spent_refuses_nothing_that_was_answered(server: RunningStandIn, budgeted: MakeRecipe) -> None:
    prompts = [f"Question {n}?" for n in range(5)]
    run(budgeted(prompts, None))
    fewer = run(budgeted(prompts[:3], 1e-6))
    assert (fewer.sent, fewer.reused) == (0, 3)


def test_billed_attempts_that_gave_nothing_are_paid_at_their_worst(
    server: RunningStandIn, budgeted: MakeRecipe
) -> None:
    prompt = "Name a bird. !reset !nousage"
    result = run(budgeted([prompt], 1.0))
    assert server.stats.billed[prompt] == 2
    assert spent_usd(budgeted([prompt], 1.0)) == pytest.approx(2 * worst_usd(prompt))
    assert result.dataset.manifest.totals.cost_usd is None  # no usage: nobody knows what the answer itself cost


@pytest.mark.parametrize(
    ("word", "lost"),
    [
        ("504", 1),
        ("504 !504", 2),
        ("reset !504", 2),
        ("hang", 1),
        ("408", 0),
        ("429", 0),
        ("500", 0),
        ("502", 0),
        ("503", 0),
    ],
)
def test_an_attempt_that_may_have_been_billed_counts_in_full_and_one_that_was_refused_not_at_all(
    server: RunningStandIn, api_recipe: MakeRecipe, word: str, lost: int
) -> None:
    """A gateway that gives up (504) says nothing of the model behind it, which may go on and be paid for."""
    prompt = f"Name a bird. !{word}"
    recipe = api_recipe(
        server.base_url,
        [prompt],
        price=PRICE,
        budget_usd=1.0,
        sampling={"max_tokens": MAX_TOKENS},
        options={"timeouts": {"read": 0.3}},
    )
    assert run(recipe).sent == 1
    assert spent_usd(recipe) == pytest.approx(lost * worst_usd(prompt) + ANSWER_USD)


@pytest.mark.parametrize(("word", "lost"), [("504*", sender.ATTEMPTS), ("reset*", sender.ATTEMPTS), ("500*", 0)])
def test_a_rejection_tells_what_its_attempts_may_have_cost(
    server: RunningStandIn, budgeted: MakeRecipe, word: str, lost: int
) -> None:
    prompt = f"Name a bird. !{word}"
    result = run(budgeted([prompt, "Name a colour."], 1.0))
    assert rows_by_prompt(result.dataset)[prompt]["cost_usd"] == (
        pytest.approx(lost * worst_usd(prompt)) if lost else None
    )
    assert spent_usd(budgeted([prompt], 1.0)) == pytest.approx(lost * worst_usd(prompt) + ANSWER_USD)
    assert result.dataset.manifest.totals.spent_usd == pytest.approx(lost * worst_usd(prompt) + ANSWER_USD)


def test_an_attempt_that_was_stopped_under_way_counts_in_full(
    server: RunningStandIn, budgeted: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have billed it, whoever no longer waits for it: stopped, and at the end of the grace."""
    monkeypatch.setattr(sender, "GRACE_SECONDS", 0.05)
    prompts = [f"Question {n}? !hang*" for n in range(3)]
    recipe = budgeted(prompts, 1.0)

    async def stopped() -> None:
        running = asyncio.create_task(label(recipe))
        while server.stats.at_once < len(prompts):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(stopped())
    with closing(JournalView(dataset_folder(recipe.dataset))) as view:
        assert view.spent() == pytest.approx(sum(map(worst_usd, prompts)))
        assert not view._scalar("SELECT count(*) FROM reserved")


def test_a_refusal_of_everybody_costs_nothing_and_leaves_nothing_set_aside(
    server: RunningStandIn, budgeted: MakeRecipe
) -> None:
    recipe = budgeted([f"Question {n}? !401*" for n in range(20)], 1.0)
    with pytest.raises(TeacherUnavailable):
        run(recipe)
    assert spent_usd(recipe) == 0.0
    with closing(JournalView(dataset_folder(recipe.dataset))) as view:
        assert not view._scalar("SELECT count(*) FROM reserved")


def test_a_defect_of_a_teacher_counts_in_full(
    server: RunningStandIn, budgeted: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = budgeted(["Name a colour."], 1.0)
    opened = engine.open_teacher

    def defective(*arguments: Any) -> Any:
        teacher = opened(*arguments)

        async def answer(requests: Sequence[Request]) -> Any:
            raise ZeroDivisionError

        teacher.answer = answer
        return teacher

    monkeypatch.setattr(engine, "open_teacher", defective)
    with pytest.raises(ZeroDivisionError):
        run(recipe)
    assert spent_usd(recipe) == pytest.approx(worst_usd("Name a colour."))


@pytest.mark.parametrize("price", [None, {**PRICE}])
def test_a_budget_without_a_price_is_refused_before_anything_is_written(
    server: RunningStandIn, api_recipe: MakeRecipe, price: dict[str, float] | None
) -> None:
    recipe = api_recipe(server.base_url, ["Name a colour."], price=price, budget_usd=0.5)
    if price is None:
        with pytest.raises(RecipeError, match="Set teacher.price to"):
            run(recipe)
        assert server.stats.requests == 0
        assert not dataset_folder(recipe.dataset).exists()
    else:
        assert run(recipe).sent == 1


def test_money_is_reserved_on_the_disk_before_anything_is_sent(
    server: RunningStandIn, budgeted: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any instant, the disk holds enough for every attempt that a teacher has begun."""
    prompts = [f"Question {n}?" for n in range(30)]
    recipe = budgeted(prompts, 1.0)
    under_way: set[str] = set()
    missing: list[float] = []
    opened = engine.open_teacher

    def watching(*arguments: Any) -> Any:
        teacher = opened(*arguments)
        plain = teacher.answer

        async def answer(requests: Sequence[Request]) -> Any:
            under_way.add(requests[0].prompt.text)
            with closing(JournalView(dataset_folder(recipe.dataset))) as view:
                held = float(view._scalar("SELECT sum(usd) FROM reserved") or 0.0)
            missing.append(sum(map(worst_usd, under_way)) - held)
            try:
                return await plain(requests)
            finally:
                under_way.discard(requests[0].prompt.text)

        teacher.answer = answer
        return teacher

    monkeypatch.setattr(engine, "open_teacher", watching)
    run(recipe)
    assert len(missing) == 30
    assert max(missing) <= DUST


# ------------------------------------------------------------------------------------------------ processes that are killed


def _stillhouse(recipe: Path) -> list[str]:
    return [sys.executable, "-m", "stillhouse", "label", str(recipe), "--no-flow", "--json"]


def _killed_after(command: Sequence[str], server: RunningStandIn, answers: int, environment: dict[str, str]) -> None:
    """Run a command until the server has billed so many answers more, then `kill -9`."""
    target = server.stats.billed_answers + answers
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while server.stats.billed_answers < target and process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_again_and_again_the_server_bills_no_more_than_the_budget(
    server: RunningStandIn, budgeted: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    """What was under way at a kill may have been billed, and counts; the end of the budget is told, with exit status 1."""
    prompts = [f"Question {n}? {'!reset' if n % 7 == 0 else ''}" for n in range(400)]
    environment = {**os.environ, "PREFECT_HOME": str(ROOT)}
    server.server.latency = 0.02
    path = recipe_file(budgeted(prompts, 0.04, concurrency=32, shard_size=25))
    for answers in (1, 40, 30):
        _killed_after(_stillhouse(path), server, answers, environment)
    assert billed_usd(server) <= spent_usd(budgeted(prompts, 0.04)) + DUST
    done = subprocess.run(
        _stillhouse(path), cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "error: label.budget_usd is 0.04" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert billed_usd(server) <= spent_usd(budgeted(prompts, 0.04)) + DUST <= 0.04 + 2 * DUST

    seen = dict(server.stats.seen)
    result = run(budgeted(prompts, 1.0, concurrency=32, shard_size=25))
    assert len(rows_by_prompt(result.dataset)) == 400
    assert result.dataset.problems() == []
    asked_again = [prompt for prompt, times in seen.items() if server.stats.seen[prompt] > times]
    assert len(asked_again) <= 4 * 32  # in flight at one of the stops; all others were durable


@pytest.mark.slow
def test_a_budget_without_a_price_ends_with_status_2(
    server: RunningStandIn, api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    recipe = api_recipe(server.base_url, ["Name a colour."], budget_usd=0.5)
    done = subprocess.run(_stillhouse(recipe_file(recipe)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "teacher.price" in done.stderr
    assert server.stats.requests == 0
    assert versions(dataset_folder(recipe.dataset)) == []
    assert not dataset_folder(recipe.dataset).exists()


# ---------------------------------------------------------------------------------------------------------------- alone

UNIT = 0.1  # dollars a token: no sum of it is exact


@dataclass
class Ledger:
    """A journal in memory whose disk writes, or fails, when the test says so."""

    spent_usd: float = 0.0
    reserved: dict[int, float] = field(default_factory=dict)
    waiting: list[tuple[Change, "asyncio.Future[None]"]] = field(default_factory=list)

    def spent(self) -> float:
        return self.spent_usd

    def lent(self) -> dict[str, float]:
        return {}

    def commit_soon(self, change: Change) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((change, done))
        return done

    async def commit(self, change: Change) -> None:
        await self.commit_soon(change)

    def write(self) -> None:
        for change, done in self.waiting:
            self.spent_usd += change.spent_usd
            if change.reserve:
                self.reserved[change.reserve[0]] = change.reserve[1]
            if change.settle is not None:
                del self.reserved[change.settle]
            if not done.done():
                done.set_result(None)
        self.waiting.clear()

    def fail(self) -> None:
        for _, done in self.waiting:
            if not done.done():
                done.set_exception(StorageFailed("the disk is full"))
                done.exception()
        self.waiting.clear()


class AnyOrder(RuleBasedStateMachine):
    """Reservations, settlements, cancellations and disk failures in any order, against plain sums."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.limit = 20 * UNIT
        self.ledger = Ledger()
        self.budget = Budget(self.limit, FlatPrice(0.0, UNIT), self.ledger)  # type: ignore[arg-type]
        self.asked: dict[asyncio.Task[Reservation], int] = {}  # still waiting, for money or for the disk
        self.open: list[Reservation] = []  # attempts under way
        self.spent = 0.0
        self.disk_failed = False

    def teardown(self) -> None:
        for task in self.asked:
            task.cancel()
        self._settle_down()
        self.loop.close()

    def _settle_down(self) -> None:
        """Let the loop run until nothing moves, and sort out what has ended."""
        for _ in range(10):
            self.loop.run_until_complete(asyncio.sleep(0))
        for task, tokens in list(self.asked.items()):
            if not task.done():
                continue
            del self.asked[task]
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                reservation = task.result()
                assert reservation.number in self.ledger.reserved, "an attempt begins before its money is on the disk"
                self.open.append(reservation)
            elif isinstance(error, BudgetSpent):
                assert self.spent + tokens * UNIT > self.limit - DUST, "refused, and there was money"
            else:
                assert isinstance(error, StorageFailed) and self.disk_failed

    @rule(tokens=st.integers(1, 25))
    def reserve(self, tokens: int) -> None:
        task = self.loop.create_task(self.budget.reserve([request_for("?")], tokens))
        self.asked[task] = tokens
        self._settle_down()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), share=st.sampled_from([None, 0.0, 0.3, 1.0]))
    def settle(self, data: st.DataObject, share: float | None) -> None:
        reservation = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        cost = None if share is None else share * reservation.worst_usd

        async def settled() -> None:
            self.ledger.commit_soon(self.budget.settle(reservation, cost))

        self.spent += reservation.worst_usd if cost is None else cost
        self.loop.run_until_complete(settled())
        self._settle_down()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        list(self.asked)[data.draw(st.integers(0, len(self.asked) - 1))].cancel()
        self._settle_down()

    @rule()
    def disk_writes(self) -> None:
        self.ledger.write()
        self._settle_down()

    @precondition(lambda self: all(change.settle is None for change, _ in self.ledger.waiting))
    @rule()
    def disk_fails(self) -> None:
        self.disk_failed = True
        lost = {change.reserve[0] for change, _ in self.ledger.waiting if change.reserve}
        self.ledger.fail()
        self._settle_down()
        kept = [one for one in self.ledger.waiting if one[0].settle not in lost]
        self.ledger.waiting = kept  # what was never written need not be taken back

    def _reserved(self) -> float:
        """Of attempts under way, and of those that wait for the disk only."""
        coming = {change.reserve[0]: change.reserve[1] for change, _ in self.ledger.waiting if change.reserve}
        gone = {change.settle for change, _ in self.ledger.waiting}
        under_way = sum(reservation.worst_usd for reservation in self.open)
        return under_way + sum(usd for number, usd in coming.items() if number not in gone)

    @invariant()
    def never_passed(self) -> None:
        assert self.spent + self._reserved() <= self.limit + DUST
        assert self.budget.spent_usd == pytest.approx(self.spent)

    @invariant()
    def never_passed_on_the_disk(self) -> None:
        assert self.ledger.spent_usd + sum(self.ledger.reserved.values()) <= self.limit + DUST
        assert all(reservation.number in self.ledger.reserved for reservation in self.open)

    @invariant()
    def nobody_waits_without_need(self) -> None:
        on_the_way = sum(change.reserve is not None for change, done in self.ledger.waiting if not done.cancelled())
        for_money = len(self.asked) - on_the_way
        if for_money:
            assert self.open or on_the_way, "somebody waits for money that nobody will give back"
            least = min(self.asked.values()) * UNIT
            if not on_the_way:
                assert self.spent + self._reserved() + least > self.limit - DUST, "somebody waits, and there is money"


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_one_who_gives_up_takes_back_his_own_reservation_and_no_other(tmp_path: Path) -> None:
    async def give_up(journal: Journal) -> None:
        budget = Budget(10.0, FlatPrice(0.0, UNIT), journal)
        impatient = asyncio.create_task(budget.reserve([request_for("?")], 1))
        await asyncio.sleep(0)
        patient = asyncio.create_task(budget.reserve([request_for("?")], 2))
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        with pytest.raises(asyncio.CancelledError):
            await impatient

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(give_up(journal))
    with closing(JournalView(tmp_path)) as view:
        assert view.spent() == pytest.approx(2 * UNIT)


def test_a_lease_is_repaid_once_however_often_its_part_is_taken_in(tmp_path: Path) -> None:
    """A part is taken in again when a run is killed before its folder is gone: the second time changes no sum."""
    settings = LabelSettings.model_validate({"budget_usd": 10.0, "runner": {"kind": "ray", "workers": 2}})

    async def lend_and_repay(journal: Journal) -> None:
        budget = Budget(10.0, FlatPrice(0.0, UNIT), journal)
        leases = Leases(settings, budget, journal)
        await leases.lend("a", 3.0)
        await leases.lend("b", 2.0)
        assert budget.spent_usd == pytest.approx(5.0)
        leases.release()
        leases.repay("a", 0.5)
        assert budget.spent_usd == pytest.approx(2.5)
        leases.repay("a", 0.5)
        assert budget.spent_usd == pytest.approx(2.5)
        assert (journal.spent(), journal.lent()) == (pytest.approx(0.5), {"b": pytest.approx(2.0)})

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(lend_and_repay(journal))
    with Journal(tmp_path, soft=None) as journal:  # the next run
        budget = Budget(10.0, FlatPrice(0.0, UNIT), journal)
        assert budget.spent_usd == pytest.approx(2.5)
        Leases(settings, budget, journal).repay("a", 0.5)
        assert not journal.repay("a", 0.5)
        assert budget.spent_usd == journal.spent() + 2.0 == pytest.approx(2.5)


def leases_of(journal: Journal, budget_usd: float, workers: int = 2) -> tuple[Leases, Budget]:
    label = LabelSettings.model_validate({"budget_usd": budget_usd, "runner": {"kind": "ray", "workers": workers}})
    budget = Budget(budget_usd, FlatPrice(0.0, UNIT), journal)
    return Leases(label, budget, journal), budget


def test_what_is_left_of_a_budget_is_shared_among_the_workers_that_have_nothing_yet(tmp_path: Path) -> None:
    async def lend(journal: Journal) -> None:
        leases, budget = leases_of(journal, 9.0, workers=3)
        for part in "abc":
            await leases.lend(part, 100.0)
        assert [leases.settings_for(part).budget_usd for part in "abc"] == [pytest.approx(3.0)] * 3
        assert budget.spent_usd == pytest.approx(9.0)

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(asyncio.wait_for(lend(journal), timeout=10))


def test_a_part_is_labelled_with_its_own_lease_and_fails_for_no_share_of_rejections(tmp_path: Path) -> None:
    async def lend(journal: Journal) -> None:
        leases, _ = leases_of(journal, 9.0)
        await leases.lend("a", 2.0)
        label = leases.settings_for("a")
        assert (label.budget_usd, label.runner.kind, label.max_rejected) == (2.0, "local", 1.0)

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(asyncio.wait_for(lend(journal), timeout=10))


def test_who_asks_for_more_lets_others_bring_back_theirs_first_though_some_is_left(tmp_path: Path) -> None:
    async def wait_for_more(journal: Journal) -> None:
        leases, _ = leases_of(journal, 10.0)
        await leases.lend("a", 2.0)
        await leases.lend("b", 2.0)
        leases.release()  # a is out of money
        more = asyncio.create_task(leases.lend("a", 2.0, more=True))
        await asyncio.sleep(0)
        assert not more.done()
        leases.release()  # b
        await asyncio.wait_for(more, timeout=5)
        assert leases.settings_for("a").budget_usd == pytest.approx(4.0)

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(wait_for_more(journal))


@pytest.mark.parametrize("brings_back", [2.0, 0.0])
def test_a_part_that_has_spent_its_lease_waits_for_another_and_is_told_where_nothing_comes_back(
    tmp_path: Path, brings_back: float
) -> None:
    async def wait_for_more(journal: Journal) -> None:
        leases, _ = leases_of(journal, 6.0)
        await leases.lend("a", 3.0)
        await leases.lend("b", 3.0)
        leases.release()  # a is out of money
        more = asyncio.create_task(leases.lend("a", 3.0, more=True))
        await asyncio.sleep(0)
        assert not more.done()
        leases.release()  # b is done, or out of money too
        if brings_back:
            leases.repay("b", 3.0 - brings_back)
            await asyncio.wait_for(more, timeout=5)
            assert leases.settings_for("a").budget_usd == pytest.approx(3.0 + brings_back / 2)
        else:
            with pytest.raises(BudgetSpent, match="reserved for parts that are not finished"):
                await asyncio.wait_for(more, timeout=5)

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(wait_for_more(journal))


def test_money_that_comes_back_wakes_who_waits_for_it_while_others_are_still_at_work(tmp_path: Path) -> None:
    async def wait_for_more(journal: Journal) -> None:
        leases, _ = leases_of(journal, 6.0, workers=3)
        for part in "abc":
            await leases.lend(part, 2.0)
        leases.release()  # a is out of money
        more = asyncio.create_task(leases.lend("a", 1.0, more=True))
        await asyncio.sleep(0)
        leases.repay("b", 0.5)  # taken in; c is at work
        await asyncio.wait_for(more, timeout=5)
        assert leases.settings_for("a").budget_usd > 2.0

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(wait_for_more(journal))


@pytest.mark.parametrize("dollars", [1e-9, 1 / 3, 1e9 / 7])
def test_rounding_leaves_nobody_waiting(tmp_path: Path, dollars: float) -> None:
    """Sums of tenths are not exact, whatever the price: the last one is told, and not left to wait."""

    async def use_up(journal: Journal) -> None:
        budget = Budget(1000 * dollars, FlatPrice(0.0, dollars / 10), journal)
        random = Random(0)
        for _ in range(10):
            opened = [await budget.reserve([request_for("?")], random.randint(1, 300)) for _ in range(20)]
            random.shuffle(opened)
            for reservation in opened:
                budget.settle(reservation, 0.0)
        with pytest.raises(BudgetSpent):
            await asyncio.wait_for(budget.reserve([request_for("?")], 20_000), timeout=5)

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(use_up(journal))


def test_without_a_budget_nothing_is_reserved_and_everything_is_counted(tmp_path: Path) -> None:
    async def pay(journal: Journal) -> None:
        budget = Budget(None, FlatPrice(0.0, UNIT), journal)
        reservation = await budget.reserve([request_for("?")], 1000)
        await journal.commit(budget.settle(reservation, 0.5))

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(pay(journal))
        assert journal.spent() == 0.5


def test_the_worst_case_grows_with_all_that_is_sent() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    plain = request_for("word " * 100)
    assert most_prompt_tokens(plain) > 500
    shaped = Request(plain.prompt, 0, AnswerSettings(TERMS.teacher, None, response_format=schema))
    assert most_prompt_tokens(shaped) >= most_prompt_tokens(plain) + len(json.dumps(schema))
    assert most_prompt_tokens(request_for("ü" * 100)) == most_prompt_tokens(request_for("u" * 200))


def test_the_worst_case_has_room_for_every_message_and_what_a_template_puts_around_them() -> None:
    talk = Prompt(tuple(Message(role, "x") for role in ("system", "user", "assistant", "user")))
    assert most_prompt_tokens(Request(talk, 0, TERMS)) == 256 + 4 * (1 + 16)


def test_a_text_that_a_teacher_is_forced_along_is_part_of_the_prompt_and_nothing_is_written() -> None:
    plain = request_for("Name a colour.")
    forced = Request(plain.prompt, 0, TERMS, forced="blüe")
    budget = Budget(None, FlatPrice(1.0, 10.0), Ledger())  # type: ignore[arg-type]
    assert most_prompt_tokens(forced) == most_prompt_tokens(plain) + 5  # bytes
    assert budget.worst_usd([forced], 100) == most_prompt_tokens(forced)
    assert budget.worst_usd([plain, forced], 100) == most_prompt_tokens(plain) + 1000 + most_prompt_tokens(forced)
    label = LabelSettings.model_validate({"sampling": {"max_tokens": 100}})
    assert likely_tokens(plain, label) == likely_prompt_tokens(plain) + 100
    assert likely_tokens(forced, label) == likely_prompt_tokens(forced)


def test_a_prompt_has_a_token_however_short_it_is() -> None:
    assert likely_prompt_tokens(request_for("?")) == 1
    assert likely_prompt_tokens(request_for("x" * 40)) == 11


def test_where_the_price_is_not_known_nothing_is_counted() -> None:
    budget = Budget(None, None, Ledger())  # type: ignore[arg-type]
    assert budget.worst_usd([request_for("?")], 1000) == 0.0
