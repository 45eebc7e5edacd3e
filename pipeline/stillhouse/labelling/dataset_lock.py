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
_RETRY_EVERY = 0.5  # seconds between attempts to take a local lock
_RETRY_REMOTE_EVERY = 5.0  # the same for a lock in a remote store, where each attempt costs some requests
_REPORT_EVERY = 30.0


@contextmanager
def lock_dataset(settings: DatasetSettings) -> Iterator[None]:
    """Lock a dataset and its journal: no other run can write or use them inside the block.

    Raises:
        DatasetBusy: another run holds the lock.
        StorageFailed: the disk or the store cannot be used.
    """
    with ExitStack() as stack:
        for folder in dict.fromkeys((dataset_folder(settings), journal_folder(settings))):
            stack.enter_context(write_lock(folder))
        yield


@asynccontextmanager
async def wait_for_dataset_lock(
    settings: DatasetSettings, busy: DatasetBusy, progress: Progress
) -> AsyncIterator[None]:
    """Lock a dataset as `lock_dataset` does, after waiting for the run named by `busy` if `dataset.when_busy` is wait.

    Raises:
        DatasetBusy: `dataset.when_busy` is leave, or `dataset.patience` seconds of waiting are over.
        StorageFailed: the disk or the store cannot be used.
    """
    if settings.when_busy == "leave":
        advice = f"{busy.fix}, or " if busy.fix else ""
        raise DatasetBusy(
            busy.problem.rstrip("."),
            busy.holder,
            setting="dataset.when_busy",
            value="leave",
            fix=f"{advice}set it to wait, so that this run starts when the other one ends",
        )
    retry_every = _RETRY_REMOTE_EVERY if isinstance(dataset_folder(settings), RemotePath) else _RETRY_EVERY
    started, report_at = time.monotonic(), 0.0
    while True:
        waited = time.monotonic() - started
        if waited >= settings.patience:
            raise DatasetBusy(
                f"{busy.problem.rstrip('.')}; this run has waited for {waited:,.0f} s",
                busy.holder,
                setting="dataset.patience",
                value=settings.patience,
                fix="run again when the other run has ended, or set it higher",
            )
        if waited >= report_at:
            progress(f"Seconds waited for {busy.holder}", round(waited), round(settings.patience))
            report_at = waited + _REPORT_EVERY
        await asyncio.sleep(min(retry_every, settings.patience - waited))
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_dataset(settings))
            except DatasetBusy as error:
                busy = error
                continue
            yield
            return


@contextmanager
def open_journal(settings: DatasetSettings, soft: EncodingName | None) -> Iterator[Journal]:
    """Open the journal of a dataset that the caller has locked.

    Raises:
        StorageFailed: the disk cannot be used.
    """
    folder, work = dataset_folder(settings), journal_folder(settings)
    is_new = not (work / FILE_NAME).is_file()
    with Journal(work, soft=soft) as journal:
        if is_new and work != folder:
            _check_existing_versions(journal, folder, work)
        yield journal


def newest_version(folder: Location) -> int | None:
    """Return the newest finished version; checks few folders, even in a store with hundreds of versions."""
    started_numbers = reversed(started_versions(folder))
    return next((number for number in started_numbers if (folder / version_label(number) / MANIFEST).is_file()), None)


def newest_manifest(folder: Location) -> Manifest | None:
    """Return the manifest of the newest finished version."""
    number = newest_version(folder)
    return None if number is None else read_manifest(folder / version_label(number))


def _check_existing_versions(journal: Journal, folder: Location, work: Path) -> None:
    finished = versions(folder)
    if finished and (spent := open_dataset(folder).manifest.totals.spent_usd):
        journal.set_note("spent_usd", str(spent))
    started_numbers = [number for number in started_versions(folder) if number not in finished]
    if started_numbers:
        _LOG.warning(
            "%s/%s was started with another journal than %s: its finished shards are kept, and all other answers are "
            "requested again. If you have the other journal, stop this run and set dataset.journal to its folder.",
            folder,
            version_label(started_numbers[-1]),
            work,
        )
