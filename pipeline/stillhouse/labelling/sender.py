"""Send requests until each has an outcome: trying again, pace, budget, and an orderly end when a run is stopped.

    sender = Sender(teacher, recipe.label, journal, budget)
    await sender.ask(requests, answered=progress)

An attempt that failed is made again by tenacity, with jittered exponential backoff or after the wait that the server asked
for. What says something of the prompt (an error that comes back each time, a hang) is tried `ATTEMPTS` times and then is a
rejection; what says something of the server alone (a refused connection, 429) is tried until nothing has been answered for
`label.patience` seconds. A refusal that every prompt may get counts once others are answered (refusal_streak.py).

When a run is stopped, or one request finds that nobody can be answered, nothing new is sent, and attempts under way get
some seconds to end: their answers are paid for.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_exponential_jitter

from stillhouse.errors import StillhouseError, TeacherUnavailable
from stillhouse.labelling.budget import Budget, Reservation
from stillhouse.labelling.journal import Change, Journal
from stillhouse.labelling.metrics import Counts
from stillhouse.labelling.pace import Pace
from stillhouse.labelling.refusal_streak import RefusalStreak
from stillhouse.labelling.send_order import in_order
from stillhouse.labelling.tokens import likely_tokens
from stillhouse.progress import Progress, silent
from stillhouse.recipe.label import LabelSettings
from stillhouse.records import Completion, Rejection
from stillhouse.teachers.base import Answer, Outcome, Prepares, Refusal, Request, Teacher, TryAgain

log = logging.getLogger(__name__)

ATTEMPTS = 8  # at one prompt, before it is rejected: about a minute
SERVER_ATTEMPTS = 40  # at one prompt that finds the server unwell while others are answered
GRACE_SECONDS = 10.0  # for attempts under way when a run is stopped

_END_SECONDS = 1.0  # in which every request learns that the run ends
_BACKOFF = wait_exponential_jitter(multiplier=0.5, max=30.0, jitter=1.0)


@dataclass
class _Tries:
    """What has become of one batch so far."""

    requests: Sequence[Request]
    made: int = 0
    sent: float = 0.0  # time.monotonic() of the last attempt
    own_failures: int = 0  # that say something of these prompts
    lost_usd: float = 0.0  # billed for attempts that gave nothing


_Suspect = tuple[Request, Refusal]  # a refusal that is not known to be the prompt's own


class Sender:
    """Shared by every shard of a run; used from one event loop. `counts` tells what it has done."""

    def __init__(
        self, teacher: Teacher, label: LabelSettings, journal: Journal, budget: Budget, progress: Progress = silent
    ) -> None:
        self._teacher = teacher
        self._progress = progress
        self._preparing = asyncio.Lock()
        self._prepared = False
        self._label = label
        self._journal = journal
        self._budget = budget
        calls = max(1, label.concurrency // teacher.batch_size)
        self._pace = Pace(min(calls, teacher.parallel or calls), label.limits)
        self._under_way: set[asyncio.Task[None]] = set()  # sent, and not yet durable
        self._ending: set[asyncio.Task[None]] = set()  # of a run that is stopped: what is under way is their last
        self._failing_since: float | None = None  # nobody has been answered since
        self._streak = RefusalStreak(label.refusals_in_a_row)
        self.counts = Counts()

    @property
    def sent(self) -> int:
        """Requests that ended with an outcome, in this run."""
        return self.counts.answered

    async def ask(self, requests: Sequence[Request], answered: Callable[[int], None]) -> None:
        """Ask each request until it has an outcome, in the order of `order.in_order`.

        Raises:
            TeacherUnavailable: nobody can be answered.
            BudgetSpent, StorageFailed: nothing more can be paid for, or kept.
        """
        size = self._teacher.batch_size
        ordered = in_order(requests, batched=size > 1)
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        if not batches:
            return
        await self._prepare()
        if self.counts.began is None:
            self.counts.began = time.monotonic()
        tasks = {asyncio.create_task(self._until_answered(_Tries(batch), answered)) for batch in batches}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            ending = asyncio.create_task(self._wind_down(tasks))
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:  # another shard has failed: what is under way here is paid for all the same
                await ending
                raise

    async def _prepare(self) -> None:
        async with self._preparing:
            if not self._prepared and isinstance(self._teacher, Prepares):
                await self._teacher.prepare(self._progress)
            self._prepared = True

    async def _until_answered(self, tries: _Tries, answered: Callable[[int], None]) -> None:
        with self._streak.request():
            await self._until_recorded(tries)
        answered(len(tries.requests))

    async def _until_recorded(self, tries: _Tries) -> None:
        try:
            try:  # most need no second attempt, and tenacity's machinery costs as much as all the rest
                suspects = await self._attempt(tries)
            except TryAgain as first:
                suspects = await self._again(tries, first)
        except TryAgain as trouble:
            if trouble.of_server and self._out_of_patience():
                raise TeacherUnavailable(
                    f"{trouble.detail}; nobody has been answered for {self._label.patience:g} s (label.patience). What was "
                    "answered before is kept: run again when the server is well."
                ) from None
            detail = f"{trouble.detail} (at the last of {tries.made} attempts)"
            refusal = Refusal(trouble.reason, detail, tries.made, suspect=trouble.reason)
            suspects = [(request, refusal) for request in tries.requests]
        for request, refusal in suspects:
            await self._streak.confirm(refusal)
            record = self._record(request, refusal, tries)
            await self._journal.commit(Change(outcomes=[record]))
            self._count([record])

    async def _again(self, tries: _Tries, first: TryAgain) -> list[_Suspect]:
        """Further attempts, after a first one that failed."""
        failed = [first]

        async def attempt() -> list[_Suspect]:
            if failed:
                raise failed.pop()
            return await self._attempt(tries)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TryAgain),
            wait=_seconds_to_wait,
            stop=lambda state: self._enough(tries, state),
            reraise=True,
        )
        return await retrying(attempt)

    async def _attempt(self, tries: _Tries) -> list[_Suspect]:
        """Ask once, and make what comes back durable; return the refusals that every prompt may get, which are not yet."""
        tokens = sum(likely_tokens(request, self._label) for request in tries.requests)
        tries.sent = await self._pace.enter(len(tries.requests), tokens)
        task = asyncio.current_task()
        assert task is not None
        try:
            reservation = await self._budget.reserve(tries.requests, self._label.sampling.max_tokens)
            self._under_way.add(task)
            self.counts.in_flight += len(tries.requests)
            outcomes = await self._answers(tries, reservation)
            records, suspects = self._sorted(tries, outcomes)
            change = self._budget.settle(reservation, _total_cost(outcomes))
            await self._journal.commit(replace(change, outcomes=records))
            self._count(records)
            return suspects
        except StillhouseError:  # the run ends: whose turn is next waits until it is told so
            self._pace.pause(_END_SECONDS)
            raise
        finally:
            self._pace.leave()  # not before it is durable: no more than `concurrency` is ever at stake
            if task in self._under_way:
                self._under_way.remove(task)
                self.counts.in_flight -= len(tries.requests)
            if task in self._ending:
                task.cancel()

    def _sorted(
        self, tries: _Tries, outcomes: Sequence[Outcome]
    ) -> tuple[list[Completion | Rejection], list[_Suspect]]:
        """What can be recorded, and the refusals that every prompt may get."""
        records: list[Completion | Rejection] = []
        suspects: list[_Suspect] = []
        for request, outcome in zip(tries.requests, outcomes, strict=True):
            if isinstance(outcome, Refusal) and outcome.suspect is not None:
                suspects.append((request, outcome))
            else:
                records.append(self._record(request, outcome, tries))
        return records, suspects

    async def _answers(self, tries: _Tries, reservation: Reservation) -> Sequence[Outcome]:
        tries.made += 1
        try:
            outcomes = await self._teacher.answer(tries.requests)
        except TryAgain as trouble:
            self._note_trouble(trouble, tries, reservation)
            raise
        except TeacherUnavailable:
            self._journal.later(self._budget.settle(reservation, 0.0))
            raise
        except BaseException:  # stopped, or a defect: it may have been billed
            self._journal.later(self._budget.settle(reservation, None))
            raise
        self._failing_since = None
        self._pace.succeeded()
        if any(isinstance(outcome, Answer) or outcome.answer is not None for outcome in outcomes):
            self._streak.answered()
        pause = max((outcome.pause for outcome in outcomes if isinstance(outcome, Answer)), default=0.0)
        if pause:
            self._pace.pause(min(pause, self._label.patience))
        return outcomes

    def _note_trouble(self, trouble: TryAgain, tries: _Tries, reservation: Reservation) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            if trouble.reason == "unreachable":
                log.warning("%s: trying again for %g s (label.patience)", trouble.detail, self._label.patience)
        tries.own_failures += not trouble.of_server
        tries.lost_usd += reservation.worst_usd if trouble.cost_usd is None else trouble.cost_usd
        self._journal.later(self._budget.settle(reservation, trouble.cost_usd))
        if trouble.reason == "malformed":
            self._streak.unreadable(tries.requests[0].key, trouble.detail)
        if trouble.overloaded:
            self._pace.overloaded(tries.sent)
        if trouble.wait > self._label.patience:
            raise TeacherUnavailable(
                f"{trouble.detail}; it asks to wait {trouble.wait:,.0f} s, and label.patience is {self._label.patience:g}. "
                "What was answered is kept: run again then."
            )
        if trouble.wait:
            self._pace.pause(trouble.wait)

    def _enough(self, tries: _Tries, state: RetryCallState) -> bool:
        """Whether to give up: this prompt, or, where the trouble is the server's, the run."""
        if not _trouble(state).of_server:
            return tries.own_failures >= ATTEMPTS
        return tries.made >= SERVER_ATTEMPTS or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        since = self._failing_since
        return since is not None and time.monotonic() - since >= self._label.patience

    async def _wind_down(self, tasks: set[asyncio.Task[None]]) -> None:
        """Send nothing new; let attempts under way end, since they are paid for; then stop."""
        for task in tasks - self._under_way:
            task.cancel()
        ending = tasks & self._under_way
        self._ending |= ending
        if ending:
            await asyncio.wait(ending, timeout=GRACE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ending -= ending

    def _count(self, records: Sequence[Completion | Rejection]) -> None:
        """What is durable now."""
        self.counts.answered += len(records)
        for record in records:
            if isinstance(record, Rejection):
                self.counts.rejected += 1
            completion = record.completion if isinstance(record, Rejection) else record
            if completion is not None:
                self.counts.completion_tokens += completion.completion_tokens or 0

    def _record(self, request: Request, outcome: Outcome, tries: _Tries) -> Completion | Rejection:
        answer = outcome if isinstance(outcome, Answer) else outcome.answer
        completion = None
        if answer is not None:
            completion = Completion(
                id=request.key,
                prompt=request.prompt,
                sample=request.sample,
                text=answer.text,
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                teacher=request.terms.teacher.model,
                created_at=now(),
                cost_usd=answer.cost_usd,
                trace=answer.trace,
                reasoning=answer.reasoning,
                token_logprobs=answer.token_logprobs,
            )
        if completion is not None and isinstance(outcome, Answer):
            return completion
        assert isinstance(outcome, Refusal)
        return Rejection(
            id=request.key,
            prompt=request.prompt,
            sample=request.sample,
            stage="teacher",
            reason=outcome.reason,
            detail=outcome.detail,
            attempts=max(outcome.attempts, tries.made),
            completion=completion,
            cost_usd=tries.lost_usd or None,
        )


def now() -> str:
    """This second, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seconds_to_wait(state: RetryCallState) -> float:
    """Exponential with jitter; where the server named a time, that time and a little, so that not all return at once."""
    wait = _trouble(state).wait
    return wait + random.uniform(0.0, 0.5) if wait else _BACKOFF(state)


def _trouble(state: RetryCallState) -> TryAgain:
    trouble = state.outcome.exception() if state.outcome else None
    assert isinstance(trouble, TryAgain)
    return trouble


def _total_cost(outcomes: Sequence[Outcome]) -> float | None:
    """Dollars, or None where one of them is not known: then the worst case is taken for all."""
    answers = [outcome if isinstance(outcome, Answer) else outcome.answer for outcome in outcomes]
    costs = [answer.cost_usd for answer in answers if answer is not None]
    return None if None in costs else sum(cost for cost in costs if cost is not None)
