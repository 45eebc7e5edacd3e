"""Ask the teacher, keep every answer, and commit shard by shard.

    with open_job(recipe) as job:
        for number in range(job.shards):
            await job.label_shard(number)
        dataset = job.commit()

What is done is decided by the store alone: a shard that is on disk is not looked at again, an answer in the journal is not
asked for again, and a version whose manifest is there is finished. Call it again after any stop and it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import pipeline
from pipeline.config import Recipe
from pipeline.dataset.card import write_card
from pipeline.dataset.files import ShardFiles, tally
from pipeline.dataset.manifest import Manifest, version_label, write_manifest
from pipeline.dataset.store import Dataset, dataset_folder, open_dataset, started_versions, versions
from pipeline.durable import sole_writer, write_atomically
from pipeline.labelling.journal import Entry, Journal
from pipeline.labelling.plan import LabelPlan, Shard, make_plan
from pipeline.progress import Progress, silent
from pipeline.quality.base import NamedFilter, judge, open_filters
from pipeline.records import (
    FORMAT_VERSION,
    Completion,
    Rejection,
    completion_at,
    completion_schema,
    record_batch,
    rejection_row,
    rejection_schema,
)
from pipeline.teachers.base import Answer, Outcome, Request, Teacher, open_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelResult:
    """What one call of the engine did."""

    dataset: Dataset
    sent: int  # requests that reached the teacher
    reused: int  # requests that had an answer already

    @property
    def rejected_share(self) -> float:
        manifest = self.dataset.manifest
        rejected = sum(manifest.rejected.values())
        return rejected / max(1, rejected + sum(manifest.rows.values()))


async def label(recipe: Recipe, progress: Progress = silent) -> LabelResult:
    """The whole of labelling: every shard in turn, then the manifest."""
    with open_job(recipe, progress) as job:
        try:
            for number in range(job.shards):
                await job.label_shard(number)
        finally:
            await job.close()
        return job.commit()


@contextmanager
def open_job(recipe: Recipe, progress: Progress = silent) -> Iterator[LabelJob]:
    """Plan a recipe's labelling and hold its dataset for writing.

    Raises:
        UsageError: the recipe, the prompts or the filters are wrong; nothing was written.
        DatasetBusy: another run is writing this dataset.
    """
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    filters = open_filters(recipe.quality)
    plan = make_plan(recipe, teacher.identity)
    folder = dataset_folder(recipe.dataset)
    with sole_writer(folder), Journal(folder, soft=recipe.label.soft is not None) as journal:
        yield LabelJob(recipe, plan, teacher, filters, journal, progress)


class LabelJob:
    """One dataset version in the making, or one that is finished already (`shards` is then 0)."""

    def __init__(
        self,
        recipe: Recipe,
        plan: LabelPlan,
        teacher: Teacher,
        filters: Sequence[NamedFilter],
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._recipe = recipe
        self._plan = plan
        self._teacher = teacher
        self._filters = filters
        self._journal = journal
        self._progress = progress
        self._base = dataset_folder(recipe.dataset)
        self._soft = recipe.label.soft is not None
        self._sent = 0
        self._parents: list[str] = []
        self._finished = self._same_version()
        if self._finished is None:
            self._folder = self._start_version()

    @property
    def shards(self) -> int:
        """Shards to label; 0 where the newest version is this very plan."""
        return 0 if self._finished else len(self._plan.shards)

    def describe(self, number: int) -> str:
        """A shard's name for people: train 3/12."""
        shard = self._plan.shards[number]
        return f"{shard.split} {shard.index + 1}/{shard.of}"

    async def label_shard(self, number: int) -> None:
        """Ask for what is missing in one shard and write its Parquet files.

        Raises:
            TeacherUnavailable: nobody can be answered; what was answered is kept.
        """
        shard = self._plan.shards[number]
        files = self._files(shard)
        key = self._shard_key(shard)
        if not files.is_done(key):
            await self._ask(shard)
            completions, rejections = self._sorted_out(shard)
            files.write(completions, rejections, key)
        self._progress("Labelling", self._count_up_to(number), self._plan.requests)

    def commit(self) -> LabelResult:
        """Write the card and, last, the manifest; then the journal may forget."""
        if self._finished:
            return LabelResult(self._finished, sent=0, reused=self._plan.requests)
        entries = [entry for shard in self._plan.shards for entry in self._files(shard).entries()]
        counted = tally(self._folder, entries)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=self._recipe.dataset.name,
            version=int(self._folder.name[1:]),
            created_at=_now(),
            stillhouse=pipeline.__version__,
            teacher=self._teacher.identity,
            mode=self._recipe.label.mode,
            sampling=self._recipe.label.sampling,
            soft=self._recipe.label.soft,
            plan_sha256=self._plan.sha256,
            prompts_sha256=self._plan.prompts_sha256,
            prompts=self._plan.prompts,
            duplicate_prompts=self._plan.duplicate_prompts,
            rows=counted.rows,
            rejected=counted.rejected,
            totals=counted.totals,
            parents=tuple(self._parents),
            recipe=self._recipe.model_dump(mode="json", by_alias=True),
            files=tuple(entries),
        )
        write_card(self._folder, manifest)
        write_manifest(self._folder, manifest)
        self._journal.forget(list(self._plan.ids()))
        return LabelResult(Dataset(self._folder, manifest), self._sent, self._plan.requests - self._sent)

    async def close(self) -> None:
        """Let the teacher go; what it holds (a model's memory, a connection) is free afterwards."""
        await self._teacher.close()

    # ------------------------------------------------------------------------------------------------------- versions

    def _same_version(self) -> Dataset | None:
        """The newest finished version, if it was made from this very plan."""
        if not versions(self._base):
            return None
        newest = open_dataset(self._base)
        return newest if newest.manifest.plan_sha256 == self._plan.sha256 else None

    def _start_version(self) -> Path:
        """The folder of the version to write: one that was begun, or the next. Earlier answers are taken over."""
        finished = versions(self._base)
        begun = [number for number in started_versions(self._base) if number not in finished]
        number = begun[-1] if begun else max(finished, default=0) + 1
        folder = self._base / version_label(number)
        self._drop_stale(folder)
        for parent in finished:
            if self._take_over(open_dataset(self._base, parent)):
                self._parents.append(version_label(parent))
        write_atomically(folder / "recipe.yaml", self._recipe.as_yaml().encode())
        return folder

    def _drop_stale(self, folder: Path) -> None:
        """Remove shards that were cut from another plan; their answers are all in the journal."""
        wanted = {self._files(shard, folder).name for shard in self._plan.shards}
        for part in ("data", "rejected"):
            stale = [file for file in (folder / part).glob("*") if file.name not in wanted]
            if stale:
                shutil.rmtree(folder / part)

    def _take_over(self, parent: Dataset) -> int:
        """Copy answers to this plan's requests out of an earlier version into the journal."""
        if (parent.manifest.soft is not None) != self._soft:
            return 0
        wanted = pa.array(list(self._plan.ids()))
        taken = 0
        for entry in parent.manifest.files:
            table = pq.read_table(parent.folder / entry.path)
            paid = pc.and_(pc.is_in(table["id"], value_set=wanted), pc.is_valid(table["completion"]))
            taken += self._journal.adopt(table.filter(paid))
        return taken

    def _files(self, shard: Shard, folder: Path | None = None) -> ShardFiles:
        return ShardFiles(folder or self._folder, shard.split, shard.index, shard.of)

    def _shard_key(self, shard: Shard) -> str:
        return f"{self._plan.sha256}:{shard.split}:{shard.index}:{len(shard.requests)}"

    # -------------------------------------------------------------------------------------------------------- answers

    async def _ask(self, shard: Shard) -> None:
        """Send every request of a shard that has no answer yet; longest first, alike lengths together."""
        answered = self._journal.answered(shard.ids)
        missing = [request for request in shard.requests if request.key not in answered]
        missing.sort(key=_length, reverse=True)
        size = self._teacher.batch_size
        batches = [missing[start : start + size] for start in range(0, len(missing), size)]
        at_once = max(1, self._recipe.label.concurrency // size)
        slots = asyncio.Semaphore(min(at_once, self._teacher.parallel or at_once))
        before = self._count_up_to(self._plan.shards.index(shard) - 1)
        done = len(answered)

        async def ask(batch: Sequence[Request]) -> None:
            nonlocal done
            async with slots:
                outcomes = await self._teacher.answer(batch)
            self._journal.record(
                _record(request, outcome, self._teacher) for request, outcome in zip(batch, outcomes, strict=True)
            )
            self._sent += len(batch)
            done += len(batch)
            self._progress("Labelling", before + done, self._plan.requests)

        try:
            async with asyncio.TaskGroup() as group:
                for batch in batches:
                    group.create_task(ask(batch))
        except BaseExceptionGroup as failed:  # the first failure stopped the others; it is the one to tell of
            raise failed.exceptions[0] from None

    def _sorted_out(self, shard: Shard) -> tuple[pa.Table, pa.Table]:
        """The shard's rows in the order of its requests: what the filters keep, and what was rejected."""
        entries = self._journal.read(shard.ids)
        kept: list[pa.RecordBatch] = []
        rejected: list[pa.RecordBatch] = []
        for id_, request in zip(shard.ids, shard.requests, strict=True):
            entry = _with_reference(entries[id_], request)
            refused = entry.batch if entry.kind == "rejection" else self._refused_by_filters(entry, request)
            if refused is None:
                kept.append(entry.batch)
            else:
                rejected.append(refused)
        return (
            pa.Table.from_batches(kept, completion_schema(soft=self._soft)).combine_chunks(),
            pa.Table.from_batches(rejected, rejection_schema(soft=self._soft)).combine_chunks(),
        )

    def _refused_by_filters(self, entry: Entry, request: Request) -> pa.RecordBatch | None:
        completion = completion_at(entry.batch, 0)
        verdict = judge(completion, self._filters)
        if verdict is None:
            return None
        rejection = Rejection(
            id=entry.id,
            prompt=request.prompt,
            sample=request.sample,
            stage="quality",
            reason=verdict.reason,
            detail=verdict.detail,
            completion=completion,
        )
        return record_batch([rejection_row(rejection, soft=self._soft)], rejection_schema(soft=self._soft))

    def _count_up_to(self, number: int) -> int:
        return sum(len(shard.requests) for shard in self._plan.shards[: number + 1])


def _record(request: Request, outcome: Outcome, teacher: Teacher) -> Completion | Rejection:
    if not isinstance(outcome, Answer):
        return Rejection(
            id=request.key,
            prompt=request.prompt,
            sample=request.sample,
            stage="teacher",
            reason=outcome.reason,
            detail=outcome.detail,
            attempts=outcome.attempts,
        )
    return Completion(
        id=request.key,
        prompt=request.prompt,
        sample=request.sample,
        text=outcome.text,
        finish_reason=outcome.finish_reason,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        teacher=teacher.identity.model,
        created_at=_now(),
        cost_usd=outcome.cost_usd,
        trace=outcome.trace,
    )


def _with_reference(entry: Entry, request: Request) -> Entry:
    """The answer with the reference of today: a mended reference asks for no new answer."""
    place = entry.batch.schema.get_field_index("reference")
    field = entry.batch.schema.field(place)
    return replace(entry, batch=entry.batch.set_column(place, field, pa.array([request.prompt.reference], field.type)))


def _length(request: Request) -> int:
    """A cheap stand-in for the token count: characters."""
    return sum(len(message.content) for message in request.prompt.messages) + len(request.forced or "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
