"""Send requests until each has an outcome, with retries, pacing, a budget, and an orderly shutdown.

    sender = Sender(teacher, recipe.label, journal, budget)
    await sender.send(requests, answered=progress)

A failed attempt is retried by tenacity, with jittered exponential backoff or after the wait that the server requested. A
request whose failures the prompt may cause (a repeated error, a timeout) is rejected after `ATTEMPTS` attempts.
A failure of the server alone (a refused connection, 429) is retried until no request has been answered for `label.patience`
seconds, which ends the run, or until this request has had `SERVER_ATTEMPTS` attempts, which rejects it. A refusal that
every prompt may get is recorded once others are answered (refusal_tracker.py).

When a run is stopped, or one request finds that the teacher is unavailable, nothing new is sent, and attempts in flight get
some seconds to finish: their answers are paid for.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_exponential_jitter

from stillhouse.errors import StillhouseError, TeacherUnavailable
from stillhouse.labelling.budget import Budget, Reservation
from stillhouse.labelling.journal import Change, Journal
from stillhouse.labelling.metrics import Counts
from stillhouse.labelling.outcome_records import record_of
from stillhouse.labelling.rate_limiter import RateLimiter
from stillhouse.labelling.refusal_tracker import RefusalTracker
from stillhouse.labelling.send_order import order_requests
from stillhouse.labelling.tokens import likely_tokens
from stillhouse.progress import Progress, silent
from stillhouse.recipe.label import LabelSettings
from stillhouse.records import Completion, Rejection
from stillhouse.teachers.base import Answer, AttemptFailed, Outcome, Prepares, Refusal, Request, Teacher

log = logging.getLogger(__name__)

ATTEMPTS = 8  # per prompt, before it is rejected: about a minute
SERVER_ATTEMPTS = 40  # per prompt, if the server fails for it while it answers others
GRACE_SECONDS = 10.0  # for attempts in flight when a run is stopped

_SHUTDOWN_PAUSE = 1.0  # pause in sending, long enough to cancel every request when the run ends
_BACKOFF = wait_exponential_jitter(multiplier=0.5, max=30.0, jitter=1.0)


@dataclass
class _Attempts:
    """The attempts of one batch so far."""

    requests: Sequence[Request]
    count: int = 0
    sent: float = 0.0  # time.monotonic() of the last attempt
    own_failures: int = 0  # failures that may be the fault of these prompts
    lost_usd: float = 0.0  # billed for attempts without an answer


_Suspect = tuple[Request, Refusal]  # a refusal that may concern every prompt


class Sender:
    """Sends the requests of all shards of a run; use it from one event loop. `counts` has its counters."""

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
        self._limiter = RateLimiter(min(calls, teacher.parallel or calls), label.limits)
        self._in_flight: set[asyncio.Task[None]] = set()  # sent, with answers not yet durable
        self._ending: set[asyncio.Task[None]] = set()  # tasks of a stopped run, which end after their current attempt
        self._failing_since: float | None = None  # time.monotonic() of the first failure since the last answer
        self._refusals = RefusalTracker(label.refusals_in_a_row)
        self.counts = Counts()

    @property
    def sent(self) -> int:
        """Number of requests that got an outcome in this run."""
        return self.counts.answered

    async def send(self, requests: Sequence[Request], answered: Callable[[int], None]) -> None:
        """Send each request until it has an outcome, in the order of `send_order.order_requests`.

        Args:
            requests: the requests to send.
            answered: called with the number of requests that have just got an outcome.

        Raises:
            TeacherUnavailable: the teacher answers no request.
            BudgetSpent: the budget does not cover another request.
            StorageFailed: answers cannot be stored.
        """
        size = self._teacher.batch_size
        ordered = order_requests(requests, batched=size > 1)
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        if not batches:
            return
        await self._prepare_teacher()
        if self.counts.started_at is None:
            self.counts.started_at = time.monotonic()
        tasks = {asyncio.create_task(self._send_batch(_Attempts(batch), answered)) for batch in batches}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            ending = asyncio.create_task(self._wind_down(tasks))
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:  # another shard has failed: attempts in flight here are still paid for
                await ending
                raise

    async def _prepare_teacher(self) -> None:
        async with self._preparing:
            if not self._prepared and isinstance(self._teacher, Prepares):
                await self._teacher.prepare(self._progress)
            self._prepared = True

    async def _send_batch(self, attempts: _Attempts, answered: Callable[[int], None]) -> None:
        with self._refusals.request():
            await self._record_batch(attempts)
        answered(len(attempts.requests))

    async def _record_batch(self, attempts: _Attempts) -> None:
        try:
            try:  # most need no retry, and tenacity costs throughput (docs/benchmarks.md)
                suspects = await self._attempt(attempts)
            except AttemptFailed as first:
                suspects = await self._retry(attempts, first)
        except AttemptFailed as failure:
            if failure.server_at_fault and self._is_out_of_patience():
                raise TeacherUnavailable(
                    f"{failure.detail}; no request has been answered for {self._label.patience:g} s (label.patience); all "
                    "answers so far are kept",
                    fix="run again when the server works",
                ) from None
            detail = f"{failure.detail} (the last of {attempts.count} attempts)"
            refusal = Refusal(failure.reason, detail, attempts.count, suspect=failure.reason)
            suspects = [(request, refusal) for request in attempts.requests]
        for request, refusal in suspects:
            await self._refusals.confirm(refusal)
            record = self._record(request, refusal, attempts)
            await self._journal.commit(Change(outcomes=[record]))
            self._count([record])

    async def _retry(self, attempts: _Attempts, first: AttemptFailed) -> list[_Suspect]:
        """Retry after a failed first attempt."""
        failed = [first]

        async def attempt() -> list[_Suspect]:
            if failed:
                raise failed.pop()
            return await self._attempt(attempts)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(AttemptFailed),
            wait=_seconds_to_wait,
            stop=lambda state: self._should_stop(attempts, state),
            reraise=True,
        )
        return await retrying(attempt)

    async def _attempt(self, attempts: _Attempts) -> list[_Suspect]:
        """Make one attempt and store its answers; return the refusals that may concern every prompt, not yet stored."""
        tokens = sum(likely_tokens(request, self._label) for request in attempts.requests)
        attempts.sent = await self._limiter.acquire(len(attempts.requests), tokens)
        task = asyncio.current_task()
        assert task is not None
        try:
            reservation = await self._budget.reserve(attempts.requests, self._label.sampling.max_tokens)
            self._in_flight.add(task)
            self.counts.in_flight += len(attempts.requests)
            outcomes = await self._call_teacher(attempts, reservation)
            records, suspects = self._split_outcomes(attempts, outcomes)
            change = self._budget.settle(reservation, _total_cost(outcomes))
            await self._journal.commit(replace(change, outcomes=records))
            self._count(records)
            return suspects
        except StillhouseError:  # the run ends: hold back waiting requests until they are cancelled
            self._limiter.pause(_SHUTDOWN_PAUSE)
            raise
        finally:
            self._limiter.release()  # only once durable: at most `concurrency` answers can be lost
            if task in self._in_flight:
                self._in_flight.remove(task)
                self.counts.in_flight -= len(attempts.requests)
            if task in self._ending:
                task.cancel()

    def _split_outcomes(
        self, attempts: _Attempts, outcomes: Sequence[Outcome]
    ) -> tuple[list[Completion | Rejection], list[_Suspect]]:
        """Split outcomes into records to store and refusals that may concern every prompt."""
        records: list[Completion | Rejection] = []
        suspects: list[_Suspect] = []
        for request, outcome in zip(attempts.requests, outcomes, strict=True):
            if isinstance(outcome, Refusal) and outcome.suspect is not None:
                suspects.append((request, outcome))
            else:
                records.append(self._record(request, outcome, attempts))
        return records, suspects

    async def _call_teacher(self, attempts: _Attempts, reservation: Reservation) -> Sequence[Outcome]:
        attempts.count += 1
        try:
            outcomes = await self._teacher.answer(attempts.requests)
        except AttemptFailed as failure:
            self._record_failure(failure, attempts, reservation)
            raise
        except TeacherUnavailable:
            self._journal.commit_soon(self._budget.settle(reservation, 0.0))
            raise
        except BaseException:  # stopped, or a bug: it may have been billed
            self._journal.commit_soon(self._budget.settle(reservation, None))
            raise
        self._failing_since = None
        self._limiter.succeeded()
        if any(isinstance(outcome, Answer) or outcome.answer is not None for outcome in outcomes):
            self._refusals.record_answer()
        pause = max((outcome.pause for outcome in outcomes if isinstance(outcome, Answer)), default=0.0)
        if pause:
            self._limiter.pause(min(pause, self._label.patience))
        return outcomes

    def _record_failure(self, failure: AttemptFailed, attempts: _Attempts, reservation: Reservation) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            if failure.reason == "unreachable":
                log.warning("%s; retrying for up to %g s (label.patience)", failure.detail, self._label.patience)
        attempts.own_failures += not failure.server_at_fault
        attempts.lost_usd += reservation.worst_usd if failure.cost_usd is None else failure.cost_usd
        self._journal.commit_soon(self._budget.settle(reservation, failure.cost_usd))
        if failure.reason == "malformed":
            self._refusals.record_unreadable(attempts.requests[0].key, failure.detail)
        if failure.overloaded:
            self._limiter.overloaded(attempts.sent)
        if failure.wait > self._label.patience:
            raise TeacherUnavailable(
                f"{failure.detail}; the server asks to wait {failure.wait:,.0f} s, which is longer; all answers so far "
                "are kept",
                setting="label.patience",
                value=self._label.patience,
                fix="run again after that time, or set it higher",
            )
        if failure.wait:
            self._limiter.pause(failure.wait)

    def _should_stop(self, attempts: _Attempts, state: RetryCallState) -> bool:
        """Whether to stop retrying: to reject this prompt or, if the server keeps failing, to end the run."""
        if not _failure_of(state).server_at_fault:
            return attempts.own_failures >= ATTEMPTS
        return attempts.count >= SERVER_ATTEMPTS or self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        since = self._failing_since
        return since is not None and time.monotonic() - since >= self._label.patience

    async def _wind_down(self, tasks: set[asyncio.Task[None]]) -> None:
        """Send nothing new, let attempts in flight finish, since they are paid for, then cancel everything."""
        for task in tasks - self._in_flight:
            task.cancel()
        ending = tasks & self._in_flight
        self._ending |= ending
        if ending:
            await asyncio.wait(ending, timeout=GRACE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ending -= ending

    def _count(self, records: Sequence[Completion | Rejection]) -> None:
        """Count records that are now durable."""
        self.counts.answered += len(records)
        for record in records:
            if isinstance(record, Rejection):
                self.counts.rejected += 1
            completion = record.completion if isinstance(record, Rejection) else record
            if completion is not None:
                self.counts.completion_tokens += completion.completion_tokens or 0

    def _record(self, request: Request, outcome: Outcome, attempts: _Attempts) -> Completion | Rejection:
        return record_of(
            request.key,
            request.prompt,
            request.sample,
            outcome,
            teacher=request.answer_settings.teacher.model,
            attempts=attempts.count,
            lost_usd=attempts.lost_usd,
        )


def _seconds_to_wait(state: RetryCallState) -> float:
    """Return exponential backoff with jitter, or the wait that the server requested, also with jitter."""
    wait = _failure_of(state).wait
    return wait + random.uniform(0.0, 0.5) if wait else _BACKOFF(state)


def _failure_of(state: RetryCallState) -> AttemptFailed:
    failure = state.outcome.exception() if state.outcome else None
    assert isinstance(failure, AttemptFailed)
    return failure


def _total_cost(outcomes: Sequence[Outcome]) -> float | None:
    """Return the total in dollars, or None if any cost is not known: the worst case then counts for all."""
    answers = [outcome if isinstance(outcome, Answer) else outcome.answer for outcome in outcomes]
    costs = [answer.cost_usd for answer in answers if answer is not None]
    return None if None in costs else sum(cost for cost in costs if cost is not None)
