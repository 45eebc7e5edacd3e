"""A labelling job: send its requests, write its shards in order, and commit the dataset version.

Several shards are open at a time, so that no request waits for the last answer of an earlier shard; they are written in
order. Memory use depends on the open shards, not on the number of shards. engine.py opens a job.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import stillhouse
from stillhouse.dataset.card import write_card
from stillhouse.dataset.files import ShardFiles, count_files
from stillhouse.dataset.manifest import Manifest, write_manifest
from stillhouse.dataset.store import Dataset, dataset_folder, journal_folder, open_dataset, versions
from stillhouse.labelling.batches.checks import check_batches
from stillhouse.labelling.batches.delivery import BatchDelivery
from stillhouse.labelling.batches.jobs import has_open_jobs
from stillhouse.labelling.budget import Budget
from stillhouse.labelling.estimate import Estimate, ToSend, estimate_plan, still_to_send
from stillhouse.labelling.filtering import FilteredShard, ShardFilter
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.metrics import Meter, Metrics
from stillhouse.labelling.new_version import delete_journaled_answers, finished_version, shard_files, start_version
from stillhouse.labelling.parts import Parts
from stillhouse.labelling.plan import LabelPlan, Shard, ShardName
from stillhouse.labelling.result import LabelResult
from stillhouse.labelling.retrying import Retry
from stillhouse.labelling.runner import Runner
from stillhouse.labelling.sender import Sender
from stillhouse.plugins import TEACHERS, plugin_code_key
from stillhouse.progress import Progress, TellsMore
from stillhouse.quality.base import NamedFilter
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import FORMAT_VERSION, utc_now
from stillhouse.teachers.base import Teacher
from stillhouse.teachers.batches import Batches

_LOG = logging.getLogger(__name__)

_ACTIVITY = "Labelling"


class LabelJob:
    """The labelling of one dataset version, or a version that is already finished (`shards` is then 0)."""

    def __init__(
        self,
        recipe: Recipe,
        plan: LabelPlan,
        teacher: Teacher,
        filters: Sequence[NamedFilter],
        journal: Journal,
        progress: Progress,
        local_runner: Runner,
        retry: Retry | None = None,
    ) -> None:
        self._recipe = recipe
        self._plan = plan
        self._teacher = teacher
        self._journal = journal
        self._progress = progress
        self._local_runner = local_runner
        self._base = dataset_folder(recipe.dataset)
        self._soft = encoding_of(recipe.label.soft)
        self._shard_filter = ShardFilter(filters, soft=self._soft)
        self._budget = Budget(recipe.label.budget_usd, teacher.price, journal)
        self._sender = Sender(teacher, recipe.label, journal, self._budget, progress)
        self._meter = Meter(self._sender.counts)
        self._answered = 0
        self._counted_shards: set[int] = set()  # shards whose earlier answers have been counted
        self._written = 0  # number of shards written; they are written in order
        self._filtered: FilteredShard | None = None  # result of the shard being written, kept in case the write fails
        self._shard_written = asyncio.Condition()
        self._parts = Parts(recipe, plan, journal, self._budget)
        self._batches: BatchDelivery | None = None
        self._finished = finished_version(self._base, plan, journal, retry)
        if self._finished is None:
            self._folder, self._parents = start_version(recipe, plan, journal, retry)
        if isinstance(progress, TellsMore):
            progress.tell_more(_ACTIVITY, lambda: self.metrics().details())

    @property
    def shards(self) -> int:
        """Number of shards to label; 0 if the newest version was made from this plan."""
        return 0 if self._finished else self._plan.shards

    def describe(self, number: int) -> str:
        """Return a shard's display name, such as train 3/12."""
        shard = self._plan.names[number]
        return f"{shard.split} {shard.index + 1}/{shard.shard_count}"

    def metrics(self) -> Metrics:
        """Return the run's progress, speed and cost; call it from the thread that runs the job."""
        done = self._plan.requests if self._finished else max(self._answered, self._parts.answered)
        return self._meter.snapshot(self._plan.requests, done, self._budget.spent_usd, self._budget.limit_usd)

    def estimate(self) -> Estimate:
        """Estimate the requests still to send, as `stillhouse plan` does; the prompts are not read again."""
        newest = self._finished or (open_dataset(self._base) if versions(self._base) else None)
        to_send = ToSend(0, 0, 0) if self._finished else still_to_send(self._recipe, self._plan, self._journal)
        manifest = newest.manifest if newest else None
        return estimate_plan(self._recipe, self._plan, to_send, manifest, self._teacher, self._budget.spent_usd)

    async def run_parts(self, runner: Runner | None) -> None:
        """Have the runner label unanswered requests; without a runner, finish parts of an earlier run in this process."""
        if self._finished is None and (runner or self._parts.unfinished):
            unwritten = [number for number in range(self.shards) if not self._is_written(number)] if runner else []
            await self._parts.label(runner or self._local_runner, self._progress, unwritten)

    async def run_batches(self, *, wait: bool = True) -> None:
        """Label by the provider's batch jobs, if `label.delivery` says so, or if an earlier run has left some.

        Raises:
            JobsPending: jobs are running, and `wait` is False.
        """
        delivery, folder = self._recipe.label.delivery, journal_folder(self._recipe.dataset)
        if self._finished is not None or (delivery == "online" and not has_open_jobs(folder)):
            return
        if delivery == "online" and not isinstance(self._teacher, Batches):
            _LOG.warning(
                "this dataset has batch jobs at another teacher's provider; label with that recipe to collect them"
            )
            return
        teacher = check_batches(self._recipe, self._teacher)
        self._batches = BatchDelivery(
            self._recipe.label, self._plan, self._journal, self._budget, teacher, self._progress, folder
        )
        await self._batches.run(wait=wait)

    async def run(self, label_one: Callable[[int], Awaitable[None]]) -> None:
        """Call `label_one` with every shard's number, several at a time; the first failure cancels the others.

        `label_one` is `label_shard` or a wrapper around it (a Prefect task).
        """
        requests = self._recipe.label.shard_size * self._recipe.label.samples
        at_once = max(self._recipe.label.concurrency, 2 * (self._recipe.label.refusals_in_a_row or 0))
        slots = asyncio.Semaphore(1 + math.ceil(2 * at_once / requests))

        async def one(number: int) -> None:
            try:
                await label_one(number)
            finally:
                slots.release()

        try:
            with _collect_garbage_rarely():
                async with asyncio.TaskGroup() as group:
                    for number in range(self.shards):
                        await slots.acquire()
                        group.create_task(one(number))
        except BaseExceptionGroup as failed:  # raise only the first failure, which cancelled the others
            raise failed.exceptions[0] from None

    async def label_shard(self, number: int) -> None:
        """Request the missing answers of one shard and, when all earlier shards are written, write its Parquet files.

        It may be called again after a failure, while the other shards continue.

        Raises:
            TeacherUnavailable, BudgetSpent, StorageFailed: the shard cannot be finished; its answers so far are kept.
        """
        files = self._files(self._plan.names[number])
        key = self._shard_key(number)
        if self._is_written(number):
            self._count_earlier(number, self._plan.requests_in(number))
            async with self._write_in_order(number):
                await asyncio.to_thread(self._shard_filter.remember, files.data)
            return
        shard = await asyncio.to_thread(self._plan.shard, number)
        known = await asyncio.to_thread(self._journal.answered, shard.ids)
        self._count_earlier(number, len(known))
        await self._sender.send([request for request in shard.requests if request.key not in known], self._count)
        async with self._write_in_order(number):
            await asyncio.to_thread(self._write, shard, files, key)

    def commit(self) -> LabelResult:
        """Write the card and, last, the manifest; then drop the version's answers from the journal."""
        if self._finished:
            return LabelResult(self._finished, sent=0, reused=self._plan.requests, fresh=False)
        manifest = self._manifest()
        write_card(self._folder, manifest)
        write_manifest(self._folder, manifest)
        delete_journaled_answers(self._plan, self._journal)
        sent = self._sender.sent + self._parts.answered + (self._batches.answered if self._batches else 0)
        return LabelResult(Dataset(self._folder, manifest), sent, self._plan.requests - sent)

    async def close(self) -> None:
        """Close the teacher and free its resources (a model's memory, a connection)."""
        await self._teacher.close()

    @property
    def _all_parents(self) -> tuple[str, ...]:
        """The versions that provided prompts or answers."""
        origin = self._recipe.prompts.written_by
        of_prompts = [origin.dataset] if origin is not None and origin.dataset is not None else []
        return tuple(dict.fromkeys([*of_prompts, *self._parents]))

    def _manifest(self) -> Manifest:
        entries = [entry for name in self._plan.names for entry in self._files(name).entries()]
        counted = count_files(self._folder, entries)
        return Manifest(
            format_version=FORMAT_VERSION,
            name=self._recipe.dataset.name,
            version=int(self._folder.name[1:]),
            created_at=utc_now(),
            stillhouse=stillhouse.__version__,
            licence=self._recipe.dataset.licence,
            teacher=self._teacher.identity,
            teacher_code=plugin_code_key(TEACHERS, self._recipe.teacher.kind).get("code"),
            mode=self._recipe.label.mode,
            sampling=self._recipe.label.sampling,
            soft=self._recipe.label.soft,
            plan_sha256=self._plan.sha256,
            prompts_sha256=self._plan.prompts_sha256,
            prompts=self._plan.prompts,
            duplicate_prompts=self._plan.duplicate_prompts,
            rows=counted.rows,
            rejected=counted.rejected,
            totals=counted.totals.model_copy(update={"spent_usd": self._budget.spent_usd or None}),
            parents=self._all_parents,
            recipe=self._recipe.model_dump(mode="json", by_alias=True),
            files=tuple(entries),
        )

    def _write(self, shard: Shard, files: ShardFiles, key: str) -> None:
        if self._filtered is None:  # filter once, so stateful filters see no row twice if a write is retried
            self._filtered = self._shard_filter.apply(shard, self._journal.read(shard.ids))
        files.write(self._filtered.kept, self._filtered.rejected, key)
        self._filtered = None

    @asynccontextmanager
    async def _write_in_order(self, number: int) -> AsyncIterator[None]:
        """Wait until every earlier shard is written: filters see the rows in one order, however the work is split."""
        async with self._shard_written:
            await self._shard_written.wait_for(lambda: self._written == number)
        yield
        async with self._shard_written:
            self._written += 1
            self._shard_written.notify_all()

    def _files(self, shard: ShardName) -> ShardFiles:
        return shard_files(self._folder, shard)

    def _is_written(self, number: int) -> bool:
        return self._files(self._plan.names[number]).is_done(self._shard_key(number))

    def _shard_key(self, number: int) -> str:
        name = self._plan.names[number]
        return f"{self._plan.sha256}:{name.split}:{name.index}:{self._plan.requests_in(number)}"

    def _count_earlier(self, number: int, requests: int) -> None:
        if number not in self._counted_shards:
            self._counted_shards.add(number)
            self._count(requests)

    def _count(self, requests: int) -> None:
        self._answered += requests
        self._progress(_ACTIVITY, self._answered, self._plan.requests)


@contextmanager
def _collect_garbage_rarely() -> Iterator[None]:
    """Run Python's cyclic garbage collector less often: a request makes hundreds of objects and almost no cycles, and the
    collector took about 15 % of the time (docs/benchmarks.md)."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
