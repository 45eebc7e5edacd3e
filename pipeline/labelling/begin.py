"""Hold a dataset for writing, and open its journal.

The journal of a dataset behind a URL lies on the machine that labels it (`dataset.journal`, see docs/storage.md). Where it
begins beside versions that another machine has made, what these have cost counts against the budget.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.config import DatasetSettings
from pipeline.dataset.manifest import version_label
from pipeline.dataset.store import dataset_folder, journal_folder, open_dataset, started_versions, versions
from pipeline.durable import sole_writer
from pipeline.labelling.journal import FILE_NAME, Journal
from pipeline.records import EncodingName
from pipeline.storage.location import Location

_LOG = logging.getLogger(__name__)


@contextmanager
def held_journal(settings: DatasetSettings, soft: EncodingName | None) -> Iterator[Journal]:
    """The journal of a dataset, which nobody else writes meanwhile.

    Raises:
        DatasetBusy: another run is writing this dataset, or works with this journal.
        StorageFailed: the disk or the store cannot be used.
    """
    folder, work = dataset_folder(settings), journal_folder(settings)
    with ExitStack() as held:
        for place in dict.fromkeys((folder, work)):
            held.enter_context(sole_writer(place))
        begins = not (work / FILE_NAME).is_file()
        journal = held.enter_context(Journal(work, soft=soft))
        if begins and work != folder:
            _begin(journal, folder, work)
        yield journal


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
