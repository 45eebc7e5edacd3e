"""Lock a dataset for writing, waiting for another writer if needed, and open its journal.

The journal of a dataset behind a URL is stored on the machine that labels it (`dataset.journal`, see docs/storage.md). If
such a journal is created when versions made on another machine already exist, their cost counts against the budget.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from stillhouse.dataset.manifest import FILE_NAME as MANIFEST
from stillhouse.dataset.manifest import Manifest, read_manifest, version_label
from stillhouse.dataset.store import dataset_folder, journal_folder, open_dataset, started_versions, versions
from stillhouse.errors import DatasetBusy
from stillhouse.labelling.journal import FILE_NAME, Journal
from stillhouse.progress import Progress
from stillhouse.recipe.dataset import DatasetSettings
from stillhouse.records import EncodingName
from stillhouse.storage.durable import write_lock
from stillhouse.storage.location import Location, RemotePath

_LOG = logging.getLogger(__name__)
_LOOK_EVERY = 0.5  # seconds between attempts to take a local lock
_LOOK_AWAY_EVERY = 5.0  # the same for a lock in a remote store, where each attempt costs some requests
_TELL_EVERY = 30.0


@contextmanager
def held_dataset(settings: DatasetSettings) -> Iterator[None]:
    """Lock a dataset and its journal: no other run can write or use them inside the block.

    Raises:
        DatasetBusy: another run holds the lock.
        StorageFailed: the disk or the store cannot be used.
    """
    with ExitStack() as held:
        for place in dict.fromkeys((dataset_folder(settings), journal_folder(settings))):
            held.enter_context(write_lock(place))
        yield


@asynccontextmanager
async def held_in_turn(settings: DatasetSettings, busy: DatasetBusy, progress: Progress) -> AsyncIterator[None]:
    """Lock a dataset as `held_dataset` does, after waiting for the run named by `busy` if `dataset.when_busy` is wait.

    Raises:
        DatasetBusy: `dataset.when_busy` is leave, or `dataset.patience` seconds of waiting are over.
        StorageFailed: the disk or the store cannot be used.
    """
    if settings.when_busy == "leave":
        raise DatasetBusy(f"{busy} (With dataset.when_busy set to wait, a run waits for its turn.)", busy.holder)
    look_every = _LOOK_AWAY_EVERY if isinstance(dataset_folder(settings), RemotePath) else _LOOK_EVERY
    began, tell_at = time.monotonic(), 0.0
    while True:
        waited = time.monotonic() - began
        if waited >= settings.patience:
            raise DatasetBusy(f"{busy} This run has waited for {waited:,.0f} s (dataset.patience).", busy.holder)
        if waited >= tell_at:
            progress(f"Seconds waited for {busy.holder}", round(waited), round(settings.patience))
            tell_at = waited + _TELL_EVERY
        await asyncio.sleep(min(look_every, settings.patience - waited))
        with ExitStack() as held:
            try:
                held.enter_context(held_dataset(settings))
            except DatasetBusy as still:
                busy = still
                continue
            yield
            return


@contextmanager
def opened_journal(settings: DatasetSettings, soft: EncodingName | None) -> Iterator[Journal]:
    """Open the journal of a dataset that the caller has locked.

    Raises:
        StorageFailed: the disk cannot be used.
    """
    folder, work = dataset_folder(settings), journal_folder(settings)
    begins = not (work / FILE_NAME).is_file()
    with Journal(work, soft=soft) as journal:
        if begins and work != folder:
            _begin(journal, folder, work)
        yield journal


def newest_version(folder: Location) -> int | None:
    """Return the newest finished version; checks few folders, even in a store with hundreds of versions."""
    begun = reversed(started_versions(folder))
    return next((number for number in begun if (folder / version_label(number) / MANIFEST).is_file()), None)


def newest_manifest(folder: Location) -> Manifest | None:
    """Return the manifest of the newest finished version."""
    number = newest_version(folder)
    return None if number is None else read_manifest(folder / version_label(number))


def _begin(journal: Journal, folder: Location, work: Path) -> None:
    finished = versions(folder)
    if finished and (spent := open_dataset(folder).manifest.totals.spent_usd):
        journal.note("spent_usd", str(spent))
    begun = [number for number in started_versions(folder) if number not in finished]
    if begun:
        _LOG.warning(
            "%s/%s was begun with another journal than %s: its finished shards count, and what else was answered is asked "
            "for again. Where the other journal is at hand, stop this run and name its folder in dataset.journal.",
            folder,
            version_label(begun[-1]),
            work,
        )
