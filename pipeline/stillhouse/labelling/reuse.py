"""Copy the answers to a plan's requests from a dataset's earlier versions, so that no request is sent twice.

    parents = copy_earlier_answers(plan, journal, earlier)     # the versions that provided answers

The newest version is read first. If the source only grows, it has every earlier answer and is the only parent; an older
version becomes a parent if prompts return that the versions since did not have. Of a version that has no more answers to
provide, only the keys are read. Teacher rejections are retried in a new version; those of a part of this version stay
rejections (`copy_part`), and so do those that a retry does not select (`copy_except_retried`).
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from stillhouse.dataset.columns import text_of_turns
from stillhouse.dataset.manifest import FileEntry
from stillhouse.dataset.store import Dataset
from stillhouse.labelling.former_names import FormerNames, claim_former_name
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.plan import LabelPlan
from stillhouse.labelling.retrying import COLUMNS, Retry, rejections_in
from stillhouse.teachers.base import Forced

_ROWS_AT_ONCE = 1000
_KEYS = ("id", "prompt_id", "sample", "completion")  # the columns that decide whether a row is copied
_REJECTED_KEYS = tuple(dict.fromkeys((*_KEYS, *COLUMNS)))
_TOKENS = "completion_token_ids"


def copy_part(plan: LabelPlan, journal: Journal, part: Dataset) -> int:
    """Copy a part's answers and teacher rejections into its plan's journal; return their number."""
    return sum(_copy_file(plan, journal, part, entry, rejections=True) for entry in part.manifest.files)


def copy_except_retried(retry: Retry, plan: LabelPlan, journal: Journal, version: Dataset) -> int:
    """Copy a version of this plan into the journal, except the rejections to retry; return the number of answers."""
    return sum(
        _copy_file(plan, journal, version, entry, rejections=True, retry=retry) for entry in version.manifest.files
    )


def copy_earlier_answers(plan: LabelPlan, journal: Journal, earlier: Sequence[Dataset]) -> list[str]:
    """Copy answers to a plan's requests from earlier versions into the journal.

    Args:
        plan: the plan whose requests need answers.
        journal: a journal with the same columns as the versions' rows.
        earlier: versions, oldest first.

    Returns:
        The versions that provided answers which no newer one had, as name/v001, oldest first.
    """
    parents = [version.manifest.label for version in reversed(earlier) if _copy_version(plan, journal, version)]
    return parents[::-1]


def _copy_version(plan: LabelPlan, journal: Journal, version: Dataset) -> int:
    return sum(_copy_file(plan, journal, version, entry) for entry in version.manifest.files)


def _copy_file(
    plan: LabelPlan,
    journal: Journal,
    version: Dataset,
    entry: FileEntry,
    *,
    rejections: bool = False,
    retry: Retry | None = None,
) -> int:
    columns = list(_REJECTED_KEYS if entry.kind == "rejected" else _KEYS)
    with version.open(entry) as parquet:
        if plan.scores_tokens and _TOKENS in parquet.schema_arrow.names:
            columns.append(_TOKENS)
        keys = parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
        matched = [
            one for batch in keys for one in _match(plan, journal, version, batch, rejections=rejections, retry=retry)
        ]
    if not any(matched):
        return 0
    copied = start = 0
    with version.open(entry) as parquet:
        for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
            copied += journal.copy_from(_with_keys(batch, matched[start : start + batch.num_rows]))
            start += batch.num_rows
    return copied


def _with_keys(batch: pa.RecordBatch, keys: Sequence[str | None]) -> pa.RecordBatch:
    """Return the rows that have a key, with that key as their id."""
    column = batch.schema.get_field_index("id")
    named = batch.set_column(column, batch.schema.field(column), pa.array(keys, pa.string()))
    return named.filter(pa.array([key is not None for key in keys], pa.bool_()))


def _match(
    plan: LabelPlan,
    journal: Journal,
    version: Dataset,
    batch: pa.RecordBatch,
    *,
    rejections: bool,
    retry: Retry | None,
) -> list[str | None]:
    """Return for each row the key of the plan's request that it answers; None if it answers none, or an earlier row did.

    A rejection without an answer counts if `rejections` is set, but not if `retry` selects it. Rows stored under a former
    name of the teacher count too.
    """
    if retry is not None and "stage" in batch.schema.names:
        kept = [
            not by_teacher or not retry.selects(reason, answered=answered)
            for by_teacher, reason, answered in rejections_in(batch)
        ]
        part = batch.filter(pa.array(kept, pa.bool_()))
        found = iter(_match(plan, journal, version, part, rejections=rejections, retry=None))
        return [next(found) if keep else None for keep in kept]
    ids, prompts, samples = (batch.column(name).to_pylist() for name in ("id", "prompt_id", "sample"))
    rows = list(zip(ids, prompts, samples, _answers(batch), strict=True))
    matched = plan.match_rows(rows, rejections=rejections)
    for former in FormerNames(plan.former, journal.get_note).valid_for(version.manifest.recipe):
        more = plan.match_rows(rows, stored_with=former.answer_settings, rejections=rejections)
        if any(more):
            claim_former_name(journal, former, version.manifest.label)
        matched = [one or other for one, other in zip(matched, more, strict=True)]
    return matched


def _answers(batch: pa.RecordBatch) -> list[Forced | None]:
    """Return each row's text, or its token ids if the batch has them; None for a row without an answer."""
    if _TOKENS in batch.schema.names:
        return [None if ids is None else tuple(ids) for ids in batch.column(_TOKENS).to_pylist()]
    return [None if turns is None else text_of_turns(turns) for turns in batch.column("completion").to_pylist()]
