"""A labelling job split into parts that other processes label, on any machines that can access the dataset's root.

    parts = Parts(recipe, plan, journal, budget)
    await parts.label(runner, progress, shards)      # afterwards the journal has every answer

A part holds the prompts of some shards, in a folder <dataset>/parts/<name>/: `prompts.parquet`, a `recipe.yaml`, and the
dataset that an ordinary run of that recipe writes next to them. So a part has all that a dataset has: a single writer, a
journal, resume after a kill, a budget. When it is done, its answers are copied into the job's journal, and its folder is
deleted.

    <dataset>/parts/3f1c…/prompts.parquet, recipe.yaml, v001/
    runner.label(recipe.yaml)  ->  done | BudgetSpent: more is lent | WorkerLost: the part is dispatched again

At most `label.runner.workers` parts are dispatched at a time. A run that resumes after a kill starts with the previous
run's parts, and dispatches one again only when no worker holds it: a worker may outlive the run that dispatched it.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.dataset.columns import MESSAGES
from stillhouse.dataset.store import dataset_folder, open_dataset, versions
from stillhouse.errors import BudgetSpent, DatasetBusy, RecipeError, WorkerLost
from stillhouse.labelling.budget import Budget
from stillhouse.labelling.dataset_lock import lock_dataset
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.leases import Leases
from stillhouse.labelling.plan import LabelPlan
from stillhouse.labelling.reuse import copy_part
from stillhouse.labelling.runner import Runner
from stillhouse.progress import Progress
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.dataset import DatasetSettings
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import RECIPE_FILE, Prompt, content_hash
from stillhouse.storage.durable import write_atomically
from stillhouse.storage.location import Location, remove_tree, subfolders

_LOG = logging.getLogger(__name__)

FOLDER = "parts"
_PROMPTS = "prompts.parquet"
_COLUMNS = pa.schema([pa.field("messages", MESSAGES), pa.field("reference", pa.string())])
_MAX_DISPATCHES = 3  # dispatches of a part in all, before its lost worker fails the run
_POLL_SECONDS = 1.0  # seconds between checks whether a worker still holds a part


@dataclass(frozen=True)
class Part:
    """Some prompts of a plan, none of which had an answer when the part was written."""

    folder: Location
    prompts: frozenset[str]  # prompt ids
    worst_usd: float  # the highest cost of one attempt at each request

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe(self) -> str:
        """The path or URL of its recipe."""
        return str(self.folder / RECIPE_FILE)


class Parts:
    """The parts of one job, whose dataset this process has locked; use it from one event loop."""

    def __init__(self, recipe: Recipe, plan: LabelPlan, journal: Journal, budget: Budget) -> None:
        self._recipe = recipe
        self._plan = plan
        self._journal = journal
        self._budget = budget
        self._leases = Leases(recipe.label, budget, journal)
        self._folder = dataset_folder(recipe.dataset) / FOLDER
        self._unfinished = [part for part in self._read_unfinished() if plan.has(part.prompts)]
        self.answered = 0  # requests answered by other processes

    @property
    def unfinished(self) -> int:
        """Number of parts that an earlier run dispatched and did not collect."""
        return len(self._unfinished)

    async def label(self, runner: Runner, progress: Progress, shards: Sequence[int]) -> None:
        """Dispatch an earlier run's parts and the unanswered prompts of some shards; the first failure cancels the others.

        Args:
            runner: labels the parts.
            progress: called after each part with the activity, the requests answered and the total.
            shards: the numbers of the shards that are not written yet.

        Raises:
            BudgetSpent, TeacherUnavailable, StorageFailed: a part stopped with this error.
            WorkerLost: the worker of one part was lost several times in a row.
        """
        slots = asyncio.Semaphore(self._recipe.label.runner.workers)

        async def one(part: Part, started: bool) -> None:
            try:
                await self._label(part, runner, started)
            finally:
                slots.release()
            self._collect(part)
            progress("Labelling in workers", self.answered, max(self.answered, self._plan.requests))

        try:
            async with asyncio.TaskGroup() as group:
                for part in self._unfinished:
                    await slots.acquire()
                    group.create_task(one(part, True))
                for part in self._new_parts(shards):
                    await slots.acquire()
                    group.create_task(one(part, False))
        except BaseExceptionGroup as failed:  # raise only the first failure, which cancelled the others
            raise failed.exceptions[0] from None
        if isinstance(self._folder, Path):
            with suppress(OSError):  # it has parts of other settings, or does not exist
                self._folder.rmdir()

    # ----------------------------------------------------------------------------------------------------- which parts

    def _read_unfinished(self) -> Iterator[Part]:
        """Yield earlier parts of this teacher and these settings; others stay: their answers may be needed again."""
        known = {
            settings.id[:8]
            for settings in (self._plan.answer_settings, *(one.answer_settings for one in self._plan.former))
        }
        for folder in subfolders(self._folder):
            if folder.name[:8] in known and (folder / _PROMPTS).is_file():
                yield self._part(folder.name, list(read_prompts(_settings(folder))))

    def _new_parts(self, shards: Sequence[int]) -> Iterator[Part]:
        """Yield new parts of prompts with no answer, in no earlier part. Partly answered prompts are finished here."""
        runner = self._recipe.label.runner
        size = min(runner.shards, math.ceil(len(shards) / runner.workers)) * self._recipe.label.shard_size
        taken = frozenset[str]().union(*(part.prompts for part in self._unfinished))
        waiting: list[Prompt] = []
        for number in shards:
            shard = self._plan.shard(number)
            answered = self._journal.answered(shard.ids)
            skipped = taken | {request.prompt.id for request in shard.requests if request.key in answered}
            waiting += [one.prompt for one in shard.requests if one.sample == 0 and one.prompt.id not in skipped]
            while len(waiting) >= size:
                yield self._write_part(waiting[:size])
                del waiting[:size]
        if waiting:
            yield self._write_part(waiting)

    def _write_part(self, prompts: Sequence[Prompt]) -> Part:
        rows = [{"messages": [turn.as_dict() for turn in one.messages], "reference": one.reference} for one in prompts]
        keys = [request.key for prompt in prompts for request in self._plan.requests_of(prompt)]
        part = self._part(f"{self._plan.answer_settings.id[:8]}-{content_hash(keys)[:12]}", prompts)
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), file, compression="zstd")
        write_atomically(part.folder / _PROMPTS, file.getvalue())
        return part

    def _part(self, name: str, prompts: Sequence[Prompt]) -> Part:
        requests = [request for prompt in prompts for request in self._plan.requests_of(prompt)]
        worst_usd = self._budget.worst_usd(requests, self._recipe.label.sampling.max_tokens)
        return Part(self._folder / name, frozenset(prompt.id for prompt in prompts), worst_usd)

    # --------------------------------------------------------------------------------------------------------- one part

    async def _label(self, part: Part, runner: Runner, started: bool) -> None:
        """Dispatch a part until it is done."""
        lost, more = 0, False
        while not versions(part.folder):
            await self._leases.lend(part.name, part.worst_usd, more=more)
            try:
                if started:
                    await _wait_until_unlocked(part)
                started = True
                recipe = self._recipe_of(part)
                write_atomically(part.folder / RECIPE_FILE, recipe.as_yaml().encode())
                await runner.label(part.recipe, f"{self._recipe.dataset.name} {part.name}")
                self._check_shared(part)
            except BudgetSpent:
                more = True
                _LOG.info("part %s has spent its lease and gets another one", part.name)
            except WorkerLost as error:
                lost, more = lost + 1, False
                if lost == _MAX_DISPATCHES:
                    raise
                _LOG.warning("%s; part %s is dispatched again", error, part.name)
            finally:
                self._leases.release()

    def _recipe_of(self, part: Part) -> Recipe:
        """Return a part's recipe, an ordinary one without filters: filters run here, over all rows in order."""
        recipe = self._recipe
        teacher = recipe.teacher.model_copy(
            update={
                "model": recipe.teacher.labelling_model,
                "revision": recipe.teacher.labelling_revision,
                "finetune": None,
            }
        )
        dataset_settings = {"root": str(self._folder), "name": part.name, "version": None, "when_busy": "wait"}
        return Recipe(
            name=recipe.name,
            seed=recipe.seed,
            prompts=_settings(part.folder),
            teacher=teacher,
            label=self._leases.settings_for(part.name),
            dataset=recipe.dataset.model_copy(update=dataset_settings),
        )

    def _check_shared(self, part: Part) -> None:
        if not versions(part.folder):
            raise RecipeError(
                f"a worker labelled {part.folder}, but this process does not see its answers there",
                setting="dataset.root",
                value=self._recipe.dataset.root,
                fix="set it to a folder that all workers share under one path, or to a URL such as s3://bucket/labels",
            )

    def _collect(self, part: Part) -> None:
        """Copy a part's answers into the journal, then delete its folder. Idempotent if killed in between."""
        dataset = open_dataset(part.folder)
        self.answered += copy_part(self._plan, self._journal, dataset)
        self._leases.repay(part.name, dataset.manifest.totals.spent_usd or 0.0)
        remove_tree(part.folder)


def _settings(folder: Location) -> PromptSettings:
    """Return settings that read a part's prompts unchanged; the source's settings were applied when the job was planned."""
    return PromptSettings(source=str(folder / _PROMPTS), holdout=0.0, last_turn="continue")


async def _wait_until_unlocked(part: Part) -> None:
    """Wait until no worker of an earlier run, or one presumed lost, still labels this part."""
    settings = DatasetSettings(root=str(part.folder.parent), name=part.name)
    while True:
        with suppress(DatasetBusy), lock_dataset(settings):
            return
        await asyncio.sleep(_POLL_SECONDS)
