"""Label by batch jobs: intend, submit, wait, collect; after a kill at any instant every answer is there and paid for once.

    await BatchDelivery(...).run(wait=True)       # afterwards the journal has an outcome for every request

Before a job is submitted, its requests, its id and its money are durable (jobs.py; the lease counts as spent). A job that
was intended and whose submission is not known is looked for at the provider by this id, and adopted; only if there is none
it is given up, and its requests go into another job. A job's results may be collected twice after a kill: answers that the
journal has are skipped, and the lease can be repaid only once.

What comes back without an answer (expired, cancelled, an error of the server, a line that is missing) is asked again in
another job. A line for which the provider refuses the whole job becomes a rejection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_exponential_jitter

from stillhouse.errors import JobsPending, RecipeError, TeacherRefused, TeacherUnavailable
from stillhouse.labelling.batches.collect import Collected, collect
from stillhouse.labelling.batches.jobs import FOLDER, BatchJob, StoredRequest, jobs_in, write_job
from stillhouse.labelling.budget import Budget, budget_spent
from stillhouse.labelling.journal import Change, Journal
from stillhouse.labelling.outcome_records import record_of
from stillhouse.labelling.plan import LabelPlan
from stillhouse.labelling.sender import GRACE_SECONDS
from stillhouse.labelling.tokens import most_prompt_tokens
from stillhouse.progress import Progress
from stillhouse.recipe.label import LabelSettings
from stillhouse.records import Completion, Rejection, utc_now
from stillhouse.teachers.base import AttemptFailed, Refusal, Request, Teacher
from stillhouse.teachers.batches import Batches, RemoteBatch

log = logging.getLogger(__name__)

ACTIVITY = "Labelling by batch jobs"
ATTEMPTS = 5  # jobs in which a request may fail before it is rejected
_DOWNLOADS = 3  # of results with fewer lines than the provider counts

_TOLERANCE_USD = 1e-9
_BACKOFF = wait_exponential_jitter(multiplier=0.5, max=30.0, jitter=1.0)
_Result = TypeVar("_Result")


class BatchTeacher(Batches, Teacher, Protocol):
    """A teacher with batch jobs."""


class BatchDelivery:
    """The batch jobs of one dataset, whose lock the caller holds; use it from one event loop."""

    def __init__(
        self,
        label: LabelSettings,
        plan: LabelPlan,
        journal: Journal,
        budget: Budget,
        teacher: BatchTeacher,
        progress: Progress,
        folder: Path,
    ) -> None:
        """`folder` is the journal's; the other arguments are those of the job (labelling/job.py)."""
        self._label = label
        self._plan = plan
        self._journal = journal
        self._budget = budget
        self._teacher = teacher
        self._progress = progress
        self._folder = folder
        self._open: list[BatchJob] = []
        self._asked: set[str] = set()  # keys of the requests in open jobs
        self._left: Iterator[Request] = iter(())  # requests of the present pass over the plan
        self._held: list[Request] = []  # taken from it, and not in a job yet
        self._passes = 0
        self._again = True  # whether another pass over the plan may find requests without an outcome
        self._failures: Counter[str] = Counter()  # by key
        self._most = label.batch.requests or teacher.batch_limits.requests
        self._is_full = False  # whether the provider refused a job because too many tokens are waiting
        self._completed: dict[str, int] = {}  # by job, as the provider says
        self.answered = 0  # requests that got an outcome here

    async def run(self, *, wait: bool = True) -> None:
        """Collect earlier jobs, submit what has no outcome, and wait for the results.

        Raises:
            JobsPending: jobs are running, and `wait` is False.
            BudgetSpent: nothing more fits in the budget, and no job is running.
            TeacherUnavailable: the provider cannot be reached, or refuses the jobs.
            RecipeError: an open job belongs to another account.
        """
        await self._resume()
        while True:
            await self._look()
            await self._submit_new()
            if not self._open:
                return
            if not wait:
                raise _pending(self._open)
            self._report()
            await asyncio.sleep(self._label.batch.poll)

    # --------------------------------------------------------------------------------------------- jobs of earlier runs

    async def _resume(self) -> None:
        """Take over the open jobs of earlier runs, and return money that was lent to jobs that were never intended."""
        every = jobs_in(self._folder)
        jobs = [job for job in every if job.card.is_open]
        known = {job.lease for job in jobs}
        for lease, usd in self._journal.lent().items():
            if lease.startswith(f"{FOLDER}/") and lease not in known:
                self._repay(lease, usd, 0.0)
        for job in jobs:
            if job.card.account != self._teacher.account:
                raise RecipeError(
                    f"the batch job {job.card.id} of this dataset was submitted by another account ({job.card.account}), "
                    f"and this key belongs to {self._teacher.account}",
                    setting="teacher.options.api_key_env",
                    fix="run with that account's key until the job is collected, or run `stillhouse jobs cancel`",
                )
        for job in jobs:
            self._asked |= set(job.keys())
            adopted = job if job.card.state == "submitted" else await self._adopt(job)
            if adopted is not None:
                self._open.append(adopted)
        for job in every:
            if not job.card.is_open and not job.card.is_removed and job.card.account == self._teacher.account:
                await self._remove_files(job)

    async def _adopt(self, job: BatchJob) -> BatchJob | None:
        """Find a job at the provider that an earlier process may have submitted; None if there is none."""
        age = (datetime.now(UTC) - datetime.fromisoformat(job.card.created_at)).total_seconds()
        found = await self._patiently(partial(self._find, job))
        if found is None and age < self._label.batch.unseen:  # the killed process's request may still be on its way
            await asyncio.sleep(self._label.batch.unseen - age)
            found = await self._patiently(partial(self._find, job))
        if found is not None:
            log.info("adopted batch job %s, which an earlier run submitted as %s", job.card.id, found)
            return job.updated(state="submitted", remote_id=found, submitted_at=utc_now())
        await self._give_up(job, "it was never submitted")
        return None

    async def _find(self, job: BatchJob) -> str | None:
        since = datetime.fromisoformat(job.card.created_at)
        return await self._teacher.find_batch(job.card.id, requests=job.card.requests, since=since)

    async def _give_up(self, job: BatchJob, detail: str) -> None:
        """Settle a job of which the provider answered and billed nothing."""
        self._repay(job.lease, job.card.worst_usd, 0.0)
        self._forget(job)
        await self._remove_files(job.settled(unanswered=job.card.requests, detail=detail))

    # ------------------------------------------------------------------------------------------------------- submission

    async def _submit_new(self) -> None:
        if self._label.delivery == "online" or (self._is_full and self._open):
            return  # only to collect what an earlier run has submitted; or the provider takes no more for now
        while len(self._open) < self._label.batch.at_once:
            requests, worst_usd = self._take()
            if not requests:
                return
            self._open.append(await self._submit(requests, worst_usd))
            self._report()

    async def _submit(self, requests: Sequence[Request], worst_usd: float) -> BatchJob:
        lines = (self._teacher.batch_line(request) for request in requests)
        model = self._plan.answer_settings.teacher.model
        job = write_job(self._folder, requests, lines, account=self._teacher.account, model=model, worst_usd=worst_usd)
        self._journal.lend(job.lease, worst_usd)
        self._budget.add_spent(worst_usd)
        job = job.updated()  # from here on a later run looks for it
        self._asked |= {request.key for request in requests}
        submission = asyncio.create_task(self._submit_once(job))
        try:
            remote_id = await asyncio.shield(submission)
        except asyncio.CancelledError:  # the run is stopped: the job's id is worth a few seconds
            await asyncio.wait({submission}, timeout=GRACE_SECONDS)
            if submission.done() and submission.exception() is None:
                job.updated(state="submitted", remote_id=submission.result(), submitted_at=utc_now())
            submission.cancel()
            raise
        except TeacherUnavailable as error:
            if isinstance(error, TeacherRefused):  # it said no: there is no such job
                await self._give_up(job, str(error))
            raise
        return job.updated(state="submitted", remote_id=remote_id, submitted_at=utc_now())

    async def _submit_once(self, job: BatchJob) -> str:
        """Submit a job; after each failed attempt look whether it is there all the same."""
        began = time.monotonic()
        for attempt in count(1):
            try:
                return await self._teacher.submit_batch(job.card.id, job.input)
            except AttemptFailed as failure:
                if time.monotonic() - began > self._label.patience:
                    raise self._unavailable(failure) from None
                await asyncio.sleep(failure.wait or min(30.0, 2.0 ** (attempt - 1)))
                found = await self._patiently(partial(self._find, job))
                if found is not None:
                    return found
        raise AssertionError("unreachable")

    def _take(self) -> tuple[list[Request], float]:
        """Return the requests of the next job, and their highest cost; none if nothing is left that may be sent now.

        Raises:
            BudgetSpent: the budget does not cover one request, and no job is running.
        """
        limits, taken, worst_usd, size = self._teacher.batch_limits, list[Request](), 0.0, 0
        while len(taken) < min(self._most, limits.requests) and (request := self._next()) is not None:
            own_usd, own_size = self._worst_usd(request), len(self._teacher.batch_line(request)) + 1
            if own_size > limits.bytes:
                self._reject_soon(request, f"the request has {own_size:,} bytes, and a job at most {limits.bytes:,}")
                continue
            if size + own_size > limits.bytes or not self._affords(worst_usd + own_usd):
                self._held.append(request)
                break
            taken.append(request)
            worst_usd, size = worst_usd + own_usd, size + own_size
        if not taken and self._held and not self._open:
            assert self._label.budget_usd is not None
            raise budget_spent(
                f"${self._budget.spent_usd:.4g} have been spent, and a batch job with one request could cost "
                f"${self._worst_usd(self._held[0]):.4g}; all answers so far are kept",
                self._label.budget_usd,
            )
        return taken, worst_usd

    def _next(self) -> Request | None:
        """Return the next request without an outcome that is in no open job."""
        if self._held:
            return self._held.pop()
        request = next(self._left, None)
        if request is None and self._again and (self._label.delivery == "batch" or self._passes == 0):
            self._again, self._passes = False, self._passes + 1
            self._left = self._unanswered()
            request = next(self._left, None)
        return request

    def _unanswered(self) -> Iterator[Request]:
        for number in range(self._plan.shards):
            shard = self._plan.shard(number)
            known = self._journal.answered(shard.ids)
            yield from (one for one in shard.requests if one.key not in known and one.key not in self._asked)

    def _worst_usd(self, request: Request) -> float:
        price = self._teacher.batch_price
        if price is None:
            return 0.0
        return price.max_cost(most_prompt_tokens(request), self._label.sampling.max_tokens)

    def _affords(self, usd: float) -> bool:
        limit = self._label.budget_usd
        return limit is None or self._budget.spent_usd + usd <= limit + _TOLERANCE_USD

    def _reject_soon(self, request: Request, detail: str) -> None:
        refusal = Refusal("too-long", detail)
        self._journal.commit_soon(Change(outcomes=[self._record(request.key, request, refusal)]))
        self.answered += 1

    # ---------------------------------------------------------------------------------------------------------- results

    async def _look(self) -> None:
        """Ask for the state of every open job; collect those that have ended, cancel those past the deadline."""
        looked_at = list(self._open)
        for job in looked_at:
            remote_id = job.card.remote_id
            assert remote_id is not None
            remote = await self._patiently(partial(self._teacher.read_batch, remote_id))
            self._completed[job.card.id] = remote.completed + remote.failed
            if remote.has_ended:
                self._open.remove(job)
                await self._settle(job, remote, alone=len(looked_at) == 1)
            else:
                if remote.state != job.card.remote_state:
                    self._open[self._open.index(job)] = job = job.updated(remote_state=remote.state)
                if self._is_late(job) and remote.state not in ("cancelling", "canceling"):
                    await self._patiently(partial(self._teacher.cancel_batch, remote_id))

    def _is_late(self, job: BatchJob) -> bool:
        hours = self._label.batch.deadline
        if self._label.delivery != "auto" or hours is None or job.card.submitted_at is None:
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(job.card.submitted_at)
        return age.total_seconds() > 3600 * hours

    async def _settle(self, job: BatchJob, remote: RemoteBatch, *, alone: bool) -> None:
        """Store what a job has answered, return the rest of its money, and note what must be asked again."""
        if remote.refusal:
            await self._settle_refused(job, remote, alone=alone)
            return
        for _ in range(_DOWNLOADS):
            found = await self._patiently(lambda: self._collect(job, remote))
            if found.lines >= remote.completed + remote.failed:
                break
            await asyncio.sleep(min(5.0, self._label.batch.poll))  # a download may have been cut off
        if found.refused_all is not None:  # every prompt would get this: none is rejected
            await self._give_up(job, found.refused_all.detail)
            raise TeacherRefused(
                f"{found.refused_all.detail}; all {job.card.requests:,} requests of batch job {job.card.id} got such an "
                "error, and all answers so far are kept",
                fix="check teacher.options, label, the API key and the account",
            )
        self.answered += found.answered + found.rejected
        for key, detail in found.failed.items():
            self._failures[key] += 1
            if self._failures[key] >= ATTEMPTS:
                await self._reject(job, key, Refusal("batch", f"{detail} (the last of {ATTEMPTS} jobs)", ATTEMPTS))
        self._is_full = False
        self._repay(job.lease, job.card.worst_usd, found.cost_usd)
        self._forget(job)
        settled = job.settled(
            remote_state=remote.state,
            answered=found.answered,
            rejected=found.rejected,
            unanswered=job.card.requests - found.answered - found.rejected,
            spent_usd=found.cost_usd,
        )
        if settled.card.unanswered:
            self._again = True
            log.warning(
                "batch job %s ended (%s) without an answer to %s of its %s requests%s",
                job.card.id,
                remote.state,
                f"{settled.card.unanswered:,}",
                f"{job.card.requests:,}",
                f": {found.example}" if found.example else "",
            )
        await self._remove_files(settled)
        if found.refusal:
            raise TeacherRefused(f"{found.refusal.rstrip('.')} (batch job {job.card.id}; all answers are kept)")

    async def _collect(self, job: BatchJob, remote: RemoteBatch) -> Collected:
        price = self._teacher.batch_price
        each = job.card.worst_usd / job.card.requests if price is not None and job.card.requests else 0.0
        return await collect(
            job, remote, self._teacher, self._journal, worst_each=each, limit=self._label.refusals_in_a_row
        )

    async def _settle_refused(self, job: BatchJob, remote: RemoteBatch, *, alone: bool) -> None:
        """Settle a job that the provider refused as a whole: nothing was answered, and nothing is billed."""
        keys = job.keys()
        if remote.faulty_lines and len(remote.faulty_lines) < max(2, len(keys)):
            for fault in remote.faulty_lines:
                if 1 <= fault.number <= len(keys):
                    await self._reject(job, keys[fault.number - 1], Refusal("bad-request", fault.detail, suspect=None))
        elif remote.over_queue_limit:
            self._is_full = True
            if alone:  # nothing else of ours was waiting: the job by itself is too much
                self._most = max(1, job.card.requests // 2)
            log.warning("%s; batch job %s is submitted again later", remote.refusal, job.card.id)
        await self._give_up(job, remote.refusal)
        self._again = True
        if not remote.faulty_lines and not remote.over_queue_limit:
            raise TeacherRefused(
                f"the provider refused batch job {job.card.id}: {remote.refusal}",
                fix="check teacher.model, teacher.options and label; nothing was billed",
            )

    async def _reject(self, job: BatchJob, key: str, refusal: Refusal) -> None:
        stored = job.requests().find(key)
        assert stored is not None
        await self._journal.commit(Change(outcomes=[self._record(key, stored, refusal)]))
        self.answered += 1

    def _record(self, key: str, request: Request | StoredRequest, refusal: Refusal) -> Completion | Rejection:
        teacher = self._plan.answer_settings.teacher.model
        return record_of(key, request.prompt, request.sample, refusal, teacher=teacher)

    # -------------------------------------------------------------------------------------------------------- internals

    def _repay(self, lease: str, lent_usd: float, spent_usd: float) -> None:
        if self._journal.repay(lease, spent_usd):
            self._budget.add_spent(spent_usd - lent_usd)

    def _forget(self, job: BatchJob) -> None:
        self._asked -= set(job.keys())
        self._completed.pop(job.card.id, None)

    async def _remove_files(self, job: BatchJob) -> None:
        """Remove what was uploaded for a job; a provider deletes it by itself some day, so a failure is no error."""
        try:
            await self._teacher.remove_batch_files(job.card.id, job.card.remote_id)
            job.updated(is_removed=True)
        except (AttemptFailed, TeacherUnavailable) as error:
            log.warning("the files of batch job %s were not removed at the provider: %s", job.card.id, error)

    async def _patiently(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        """Repeat a call that changes nothing, or may be made twice, for `label.patience` seconds."""
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(AttemptFailed),
                wait=_BACKOFF,
                stop=stop_after_delay(self._label.patience),
                reraise=True,
            ):
                with attempt:
                    return await call()
        except AttemptFailed as failure:
            raise self._unavailable(failure) from None
        raise AssertionError("unreachable")

    def _unavailable(self, failure: AttemptFailed) -> TeacherUnavailable:
        return TeacherUnavailable(
            f"{failure.detail}, for {self._label.patience:g} s (label.patience); the batch jobs are not lost",
            fix="run again when the server works",
        )

    def _report(self) -> None:
        waiting = sum(self._completed.get(job.card.id, 0) for job in self._open)
        total = sum(job.card.requests for job in self._open)
        self._progress(ACTIVITY, self.answered + waiting, self.answered + total)


def _pending(jobs: Sequence[BatchJob]) -> JobsPending:
    requests = sum(job.card.requests for job in jobs)
    return JobsPending(
        f"{len(jobs)} batch job{'s' * (len(jobs) != 1)} with {requests:,} requests {'are' if len(jobs) != 1 else 'is'} at "
        "the provider",
        fix="run the same command again to collect the answers, or look with `stillhouse jobs list`",
    )
