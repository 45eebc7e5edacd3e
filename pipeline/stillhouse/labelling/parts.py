"""A labelling job in parts, which others label: on as many machines as see the dataset's root.

    parts = Parts(recipe, plan, journal, budget)
    await parts.label(runner, progress, shards)      # afterwards the journal has every answer, as if this process had asked

A part is some shards' prompts, in a folder <dataset>/parts/<name>/: `prompts.parquet`, a `recipe.yaml`, and the dataset
that an ordinary run of that recipe makes beside them. So whatever holds for a dataset holds for a part: one writer, a
journal, the way back after a kill, a budget. When it is done, its answers go into the journal of the whole, and its folder
goes.

    <dataset>/parts/3f1c…/prompts.parquet, recipe.yaml, v001/
    runner.label(recipe.yaml)  ->  done | BudgetSpent: more is lent | WorkerLost: it is handed out again

At no time are more parts out than `label.runner.workers`. A run that goes on after a kill begins with the parts that its
forerunner left, and hands one out only when nobody is at work on it any more: a worker may outlive the one that asked it.
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
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.dataset.columns import MESSAGES
from stillhouse.dataset.store import dataset_folder, open_dataset, versions
from stillhouse.errors import BudgetSpent, DatasetBusy, RecipeError, WorkerLost
from stillhouse.labelling.budget import Budget
from stillhouse.labelling.holding import held_dataset
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.leases import Leases
from stillhouse.labelling.plan import LabelPlan
from stillhouse.labelling.reuse import take_part
from stillhouse.progress import Progress
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.load import DatasetSettings, PromptSettings, Recipe
from stillhouse.records import Prompt, content_hash
from stillhouse.storage.durable import write_atomically
from stillhouse.storage.location import Location, folders_in, remove_tree

_LOG = logging.getLogger(__name__)

FOLDER = "parts"
_PROMPTS = "prompts.parquet"
_RECIPE = "recipe.yaml"
_COLUMNS = pa.schema([pa.field("messages", MESSAGES), pa.field("reference", pa.string())])
_TRIES = 3  # at a part whose worker is lost, one after another
_LOOK_EVERY = 1.0  # seconds, at a part that somebody may be at work on


class Runner(Protocol):
    """Has recipes labelled by others: a work pool, a cluster."""

    async def label(self, recipe: str, name: str) -> None:
        """Return when the recipe, a path or a URL, is labelled; `name` is for people.

        Raises:
            WorkerLost: whoever labelled it is gone.
            StillhouseError: what stopped the labelling there.
        """


@dataclass(frozen=True)
class Part:
    """Some of a plan's prompts, none of which has an answer."""

    folder: Location
    prompts: frozenset[str]  # their ids
    worst_usd: float  # the most that one attempt at each of its requests costs

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe(self) -> str:
        """Where its recipe is."""
        return str(self.folder / _RECIPE)


class Parts:
    """The parts of one job, whose dataset this process holds for writing; used from one event loop."""

    def __init__(self, recipe: Recipe, plan: LabelPlan, journal: Journal, budget: Budget) -> None:
        self._recipe = recipe
        self._plan = plan
        self._journal = journal
        self._budget = budget
        self._leases = Leases(recipe.label, budget, journal)
        self._folder = dataset_folder(recipe.dataset) / FOLDER
        self._left = [part for part in self._read_left() if plan.has(part.prompts)]
        self.answered = 0  # requests, by others

    @property
    def left(self) -> int:
        """Parts that an earlier run handed out and did not take in."""
        return len(self._left)

    async def label(self, runner: Runner, progress: Progress, shards: Sequence[int]) -> None:
        """Have labelled what was handed out before, and what has no answer yet of some shards; the first failure stops all.

        Args:
            runner: whom parts are handed to.
            progress: told of each part that has come back.
            shards: the numbers of those that are not written.

        Raises:
            BudgetSpent, TeacherUnavailable, StorageFailed: as labelling here would.
            WorkerLost: the same part's worker, several times.
        """
        places = asyncio.Semaphore(self._recipe.label.runner.workers)

        async def one(part: Part, begun: bool) -> None:
            try:
                await self._label(part, runner, begun)
            finally:
                places.release()
            self._take(part)
            progress("Labelling elsewhere", self.answered, max(self.answered, self._plan.requests))

        try:
            async with asyncio.TaskGroup() as group:
                for part in self._left:
                    await places.acquire()
                    group.create_task(one(part, True))
                for part in self._new(shards):
                    await places.acquire()
                    group.create_task(one(part, False))
        except BaseExceptionGroup as failed:  # the first failure stopped the others; it is the one to tell of
            raise failed.exceptions[0] from None
        if isinstance(self._folder, Path):
            with suppress(OSError):  # parts of other terms are in there, or it never was
                self._folder.rmdir()

    # ----------------------------------------------------------------------------------------------------- which parts

    def _read_left(self) -> Iterator[Part]:
        """Of these terms: answers to other ones may be wanted again, and lie where they are."""
        begun = {terms.id[:8] for terms in (self._plan.terms, *(one.terms for one in self._plan.former))}
        for folder in folders_in(self._folder):
            if folder.name[:8] in begun and (folder / _PROMPTS).is_file():
                yield self._part(folder.name, list(read_prompts(_settings(folder))))

    def _new(self, shards: Sequence[int]) -> Iterator[Part]:
        """What has no answer and is in no part that was left. Of a prompt that has some answers the rest is asked here."""
        runner = self._recipe.label.runner
        size = min(runner.shards, math.ceil(len(shards) / runner.workers)) * self._recipe.label.shard_size
        taken = frozenset[str]().union(*(part.prompts for part in self._left))
        waiting: list[Prompt] = []
        for number in shards:
            shard = self._plan.shard(number)
            known = self._journal.answered(shard.ids)
            begun = taken | {request.prompt.id for request in shard.requests if request.key in known}
            waiting += [one.prompt for one in shard.requests if one.sample == 0 and one.prompt.id not in begun]
            while len(waiting) >= size:
                yield self._written(waiting[:size])
                del waiting[:size]
        if waiting:
            yield self._written(waiting)

    def _written(self, prompts: Sequence[Prompt]) -> Part:
        rows = [
            {"messages": [{"role": m.role, "content": m.content} for m in one.messages], "reference": one.reference}
            for one in prompts
        ]
        keys = [request.key for prompt in prompts for request in self._plan.requests_of(prompt)]
        part = self._part(f"{self._plan.terms.id[:8]}-{content_hash(keys)[:12]}", prompts)
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), file, compression="zstd")
        write_atomically(part.folder / _PROMPTS, file.getvalue())
        return part

    def _part(self, name: str, prompts: Sequence[Prompt]) -> Part:
        requests = [request for prompt in prompts for request in self._plan.requests_of(prompt)]
        worst_usd = self._budget.worst_usd(requests, self._recipe.label.sampling.max_tokens)
        return Part(self._folder / name, frozenset(prompt.id for prompt in prompts), worst_usd)

    # --------------------------------------------------------------------------------------------------------- one part

    async def _label(self, part: Part, runner: Runner, begun: bool) -> None:
        """Hand a part out until it is done."""
        lost, more = 0, False
        while not versions(part.folder):
            await self._leases.lend(part.name, part.worst_usd, more=more)
            try:
                if begun:
                    await _nobody_at_work(part)
                begun = True
                recipe = self._recipe_of(part)
                write_atomically(part.folder / _RECIPE, recipe.as_yaml().encode())
                await runner.label(part.recipe, f"{self._recipe.dataset.name} {part.name}")
                self._check_shared(part)
            except BudgetSpent:
                more = True
                _LOG.info("part %s has spent its lease: it gets another", part.name)
            except WorkerLost as error:
                lost, more = lost + 1, False
                if lost == _TRIES:
                    raise
                _LOG.warning("%s: part %s is handed out again", error, part.name)
            finally:
                self._leases.returned()

    def _recipe_of(self, part: Part) -> Recipe:
        """An ordinary recipe. Filters are not its business: they see the rows of all parts, in order."""
        recipe = self._recipe
        teacher = recipe.teacher.model_copy(
            update={
                "model": recipe.teacher.labelling_model,
                "revision": recipe.teacher.labelling_revision,
                "finetune": None,
            }
        )
        written = {"root": str(self._folder), "name": part.name, "version": None, "when_busy": "wait"}
        return Recipe(
            name=recipe.name,
            seed=recipe.seed,
            prompts=_settings(part.folder),
            teacher=teacher,
            label=self._leases.of(part.name),
            dataset=recipe.dataset.model_copy(update=written),
        )

    def _check_shared(self, part: Part) -> None:
        if not versions(part.folder):
            raise RecipeError(
                f"dataset.root is {self._recipe.dataset.root!r}, and what a worker has labelled into {part.folder} is not "
                "seen here: give a folder that all workers share under one path, or a URL such as s3://bucket/labels"
            )

    def _take(self, part: Part) -> None:
        """Take a part's answers in. Durable before it goes; whatever is killed between, doing it again changes nothing."""
        dataset = open_dataset(part.folder)
        self.answered += take_part(self._plan, self._journal, dataset)
        self._leases.repay(part.name, dataset.manifest.totals.spent_usd or 0.0)
        remove_tree(part.folder)


def _settings(folder: Location) -> PromptSettings:
    """How a part's prompts are read: as they are, for what the source may hold was decided when they were planned."""
    return PromptSettings(source=str(folder / _PROMPTS), holdout=0.0, last_turn="continue")


async def _nobody_at_work(part: Part) -> None:
    """Wait while a worker that an earlier run asked, or that was thought lost, still labels this part."""
    settings = DatasetSettings(root=str(part.folder.parent), name=part.name)
    while True:
        with suppress(DatasetBusy), held_dataset(settings):
            return
        await asyncio.sleep(_LOOK_EVERY)
