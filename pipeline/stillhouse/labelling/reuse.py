"""Take the answers to a plan's requests out of a dataset's earlier versions, so that nothing is asked twice.

    parents = take_over(plan, journal, earlier)     # the versions that gave some: the new version's parents

The newest version is read first. Over a source that grows it has every earlier answer, and is the one parent; an older
one is a parent where prompts have come back that the versions since did not have. Of a version that has nothing more to
give, only the keys are read. What the teacher rejected is asked again in a new version; of a part of this one it stays
rejected (`take_part`), and so does what a retry does not ask for again (`take_all_but`).
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from stillhouse.dataset.manifest import FileEntry
from stillhouse.dataset.store import Dataset
from stillhouse.labelling.earlier_names import FormerNames, settle
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.plan import LabelPlan
from stillhouse.labelling.retrying import COLUMNS, Retry, rejections_in

_ROWS_AT_ONCE = 1000
_KEYS = ("id", "prompt_id", "sample", "completion")  # what says whether a row is wanted
_REJECTED_KEYS = tuple(dict.fromkeys((*_KEYS, *COLUMNS)))


def take_part(plan: LabelPlan, journal: Journal, part: Dataset) -> int:
    """Put what a part of a plan was answered into its journal, rejections of the teacher too; return how many answers."""
    return sum(_take_file(plan, journal, part, entry, rejections=True) for entry in part.manifest.files)


def take_all_but(retry: Retry, plan: LabelPlan, journal: Journal, version: Dataset) -> int:
    """Put everything of a version into the journal of its own plan but what is asked for again; return how many answers."""
    return sum(
        _take_file(plan, journal, version, entry, rejections=True, retry=retry) for entry in version.manifest.files
    )


def take_over(plan: LabelPlan, journal: Journal, earlier: Sequence[Dataset]) -> list[str]:
    """Put what earlier versions answer of a plan into its journal.

    Args:
        plan: whose requests are wanted.
        journal: of the same columns as the versions' rows.
        earlier: versions, the oldest first.

    Returns:
        Those that gave answers which no newer one had, as name/v001, the oldest first.
    """
    parents = [version.manifest.label for version in reversed(earlier) if _take_version(plan, journal, version)]
    return parents[::-1]


def _take_version(plan: LabelPlan, journal: Journal, version: Dataset) -> int:
    return sum(_take_file(plan, journal, version, entry) for entry in version.manifest.files)


def _take_file(
    plan: LabelPlan,
    journal: Journal,
    version: Dataset,
    entry: FileEntry,
    *,
    rejections: bool = False,
    retry: Retry | None = None,
) -> int:
    columns = _REJECTED_KEYS if entry.kind == "rejected" else _KEYS
    with version.open(entry) as parquet:
        keys = parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns))
        claimed = [
            one for batch in keys for one in _claimed(plan, journal, version, batch, rejections=rejections, retry=retry)
        ]
    if not any(claimed):
        return 0
    taken = begin = 0
    with version.open(entry) as parquet:
        for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
            taken += journal.adopt(_with_keys(batch, claimed[begin : begin + batch.num_rows]))
            begin += batch.num_rows
    return taken


def _with_keys(batch: pa.RecordBatch, keys: Sequence[str | None]) -> pa.RecordBatch:
    """The rows that have a key, under it."""
    place = batch.schema.get_field_index("id")
    named = batch.set_column(place, batch.schema.field(place), pa.array(keys, pa.string()))
    return named.filter(pa.array([key is not None for key in keys], pa.bool_()))


def _claimed(
    plan: LabelPlan,
    journal: Journal,
    version: Dataset,
    batch: pa.RecordBatch,
    *,
    rejections: bool,
    retry: Retry | None,
) -> list[str | None]:
    """The keys of requests of the plan that rows are answers to and no row before was.

    A rejection without an answer is one where `rejections` count, and none where `retry` asks for it again. Rows that are
    kept under a former name of the teacher count too.
    """
    if retry is not None and "stage" in batch.schema.names:
        kept = [not lost or not retry.wants(reason, answered=with_) for lost, reason, with_ in rejections_in(batch)]
        part = batch.filter(pa.array(kept, pa.bool_()))
        found = iter(_claimed(plan, journal, version, part, rejections=rejections, retry=None))
        return [next(found) if keep else None for keep in kept]
    completions = batch.column("completion").to_pylist()
    texts = [None if turns is None else "".join(turn["content"] for turn in turns) for turns in completions]
    ids, prompts, samples = (batch.column(name).to_pylist() for name in ("id", "prompt_id", "sample"))
    rows = list(zip(ids, prompts, samples, texts, strict=True))
    claimed = plan.claim(rows, rejections=rejections)
    for former in FormerNames(plan.former, journal.noted).of(version.manifest.recipe):
        more = plan.claim(rows, under=former.terms, rejections=rejections)
        if any(more):
            settle(journal, former, version.manifest.label)
        claimed = [one or other for one, other in zip(claimed, more, strict=True)]
    return claimed
