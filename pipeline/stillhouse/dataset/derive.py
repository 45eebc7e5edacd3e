"""Make a new version from a finished one: filter its rows, or split them again (merge.py combines several versions).

    >>> kettles = filter_rows(dataset, Path("data/labels"), "kettles", "prompt_text LIKE '%kettle%'")
    >>> kettles.dataset.manifest.label, kettles.dataset.manifest.rows, kettles.dataset.manifest.parents
    ('kettles/v001', {'train': 1}, ('words/v001',))

A version is never changed in place: each function writes the next version of the named dataset and records the parent in
its manifest. Rows are streamed. Rejected rows are not copied; they stay with the parent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from stillhouse.dataset.columns import completion_schema, prompt_at
from stillhouse.dataset.condition import Condition
from stillhouse.dataset.disagreements import Disagreements
from stillhouse.dataset.manifest import Manifest
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.errors import UsageError
from stillhouse.formatting import pluralize
from stillhouse.prompts.load import split_of
from stillhouse.recipe.dataset import NAME_PATTERN
from stillhouse.recipe.label import encoding_of
from stillhouse.records import SPLITS, Split
from stillhouse.storage.location import Location

_BATCH_ROWS = 256


@dataclass(frozen=True)
class Derived:
    """A new version, with counts of what happened to its parents' rows."""

    dataset: Dataset
    counts: dict[str, int]
    notes: tuple[str, ...]  # the notable counts as sentences
    disagreements: Disagreements = field(default_factory=Disagreements)  # of the merged versions


# ---------------------------------------------------------------------------------------------------------------- filter


def filter_rows(dataset: Dataset, root: Location, name: str, where: str) -> Derived:
    """Write the rows for which a condition (see condition.py) is true as a new version; each row keeps its split.

    Raises:
        UsageError: `name` is not a valid name, the condition cannot be used, or no row meets it; nothing is written.
        DatasetRefused: the dataset is damaged.
    """
    check_name(name)
    manifest = dataset.manifest
    condition = Condition(where, completion_schema(soft=encoding_of(manifest.soft)))
    dataset.check()
    masks: dict[str, pa.BooleanArray] = {}
    total = unknown = kept = 0
    for entry in dataset.files(*SPLITS):
        with dataset.open(entry) as parquet:
            batches = parquet.iter_batches(batch_size=_BATCH_ROWS, columns=condition.columns)
            found = [condition.evaluate(batch) for batch in batches]
        mask = pa.concat_arrays([pa.array([], pa.bool_()), *found])
        total, unknown = total + len(mask), unknown + mask.null_count
        masks[entry.path] = mask.fill_null(False)
        kept += masks[entry.path].true_count
    if not kept:
        undecided = f" ({unknown} are undecided because a column is null)" if unknown else ""
        raise UsageError(
            f"it is true for none of the {total} rows of {manifest.label}{undecided}. Nothing was written",
            setting="--where",
            value=condition.text,
            fix="check the values with `stillhouse datasets show`, and correct the condition",
        )
    notes = (f"{kept} of {pluralize(total, 'row')} kept",) + (
        (f"{pluralize(unknown, 'row')} left out because a column is null there",) if unknown else ()
    )
    origin = _origin(manifest, "filter", "; ".join([condition.text, *notes]))
    with new_version(root, name, origin) as version:
        for entry in dataset.files(*SPLITS):
            start = 0
            with dataset.open(entry) as parquet:
                for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                    mask = masks[entry.path].slice(start, batch.num_rows)
                    version.add(_split(entry.kind), _rows(batch.filter(mask), manifest))
                    start += batch.num_rows
    return Derived(version.dataset, {"rows_read": total, "kept": kept, "unknown": unknown}, notes)


# ----------------------------------------------------------------------------------------------------------------- split


def resplit(dataset: Dataset, root: Location, name: str, validation: float) -> Derived:
    """Write the same rows as a new version with a new train/validation split.

    A share of the prompts, chosen by a hash of their content, is held out with all their completions. Labelling splits by
    the same rule (prompts.split_of), so with the same share a prompt is in the same split in every dataset.

    Raises:
        UsageError: `name` is not a valid name, the share is not from 0 to below 1, or no row is left to train on.
        DatasetRefused: the dataset is damaged.
    """
    check_name(name)
    if not 0 <= validation < 1:
        raise UsageError(
            "it is out of range",
            setting="--validation",
            value=validation,
            fix="use the share to hold out, from 0 to below 1, such as 0.1",
        )
    manifest = dataset.manifest
    dataset.check()
    counts = dict.fromkeys(SPLITS, 0)
    for _, splits in _split_batches(dataset, validation, ["prompt", "reference"]):
        for split in splits:
            counts[split] += 1
    if not counts["train"]:
        raise UsageError(
            f"it would hold out all {counts['validation']} rows of {manifest.label} and leave none for training",
            setting="--validation",
            value=validation,
            fix="use a smaller share",
        )
    notes = (
        (f"no prompt was held out: {pluralize(counts['train'], 'row')} are too few for a share of {validation}",)
        if validation and not counts["validation"]
        else ()
    )
    with new_version(root, name, _origin(manifest, "split", f"validation {validation}, by prompt")) as version:
        for batch, splits in _split_batches(dataset, validation):
            rows = _rows(batch, manifest)
            for split in SPLITS:
                version.add(split, filter_by_mask(rows, [one == split for one in splits]))
    return Derived(version.dataset, {split: counts[split] for split in SPLITS}, notes)


def _split_batches(
    dataset: Dataset, validation: float, columns: list[str] | None = None
) -> Iterator[tuple[pa.RecordBatch, list[Split]]]:
    for entry in dataset.files(*SPLITS):
        with dataset.open(entry) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                yield batch, [split_of(prompt_at(batch, index), validation) for index in range(batch.num_rows)]


# --------------------------------------------------------------------------------------------------------------- helpers


def check_name(name: str) -> None:
    """Check a dataset name.

    Raises:
        UsageError: `name` is not a valid dataset name.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            "it is not a valid name of a dataset",
            setting="--into",
            value=name,
            fix="use letters, digits, `.`, `_` and `-`; the version number is assigned automatically",
        )


def _origin(manifest: Manifest, made_by: Literal["filter", "split"], how: str) -> Origin:
    """Return the origin of a version with one parent, whose teacher, sampling and licence it keeps."""
    return Origin(
        made_by=made_by,
        how=how,
        teacher=manifest.teacher,
        more_teachers=manifest.more_teachers,
        parents=(manifest.label,),
        soft=manifest.soft,
        mode=manifest.mode,
        sampling=manifest.sampling,
        licence=manifest.licence,
    )


def _rows(batch: pa.RecordBatch, manifest: Manifest) -> pa.RecordBatch:
    return conform_to_schema(batch, completion_schema(soft=encoding_of(manifest.soft)))


def conform_to_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with exactly the columns of a schema: extra columns are dropped, missing ones are null."""
    arrays = [
        batch.column(one.name) if one.name in batch.schema.names else pa.nulls(batch.num_rows, one.type)
        for one in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, names=schema.names).cast(schema)


def filter_by_mask(batch: pa.RecordBatch, mask: list[bool]) -> pa.RecordBatch:
    """Return the rows for which the mask is true."""
    return batch if all(mask) else batch.filter(pa.array(mask, pa.bool_()))


def _split(kind: str) -> Split:
    return "validation" if kind == "validation" else "train"
