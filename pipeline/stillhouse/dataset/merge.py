"""Merge several finished versions into one new version.

    >>> from stillhouse.dataset.derive import filter_rows
    >>> root = Path("data/labels")
    >>> kettles = filter_rows(dataset, root, "kettles", "prompt_text LIKE '%kettle%'").dataset
    >>> trams = filter_rows(dataset, root, "trams", "prompt_text LIKE '%tram%'").dataset
    >>> sum(merge([kettles, trams], root, "both").dataset.manifest.rows.values())
    2

Rows are streamed. Memory holds a 16-byte hash of each id and, for prompts in several versions, of each answer, so it does
not grow with text or soft labels. Prompts that the versions answer differently are reported (disagreements.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from stillhouse.dataset.derive import Derived, check_name, conform_to_schema, filter_by_mask
from stillhouse.dataset.disagreements import (
    Disagreements,
    columns,
    find_disagreements,
    hash_text,
    index_of_preferred,
)
from stillhouse.dataset.manifest import Manifest
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.writer import NewVersion, Origin, new_version
from stillhouse.errors import DatasetRefused, UsageError
from stillhouse.formatting import pluralize
from stillhouse.records import SPLITS
from stillhouse.storage.location import Location

Value = TypeVar("Value")


@dataclass
class _MergeCounts:
    """Counts from the first pass over the ids of all rows."""

    rows: int = 0
    repeated: int = 0  # rows with the id of an earlier row
    held_out: set[bytes] = field(default_factory=set)  # prompts that are in some version's validation split
    moved_prompts: set[bytes] = field(default_factory=set)  # held-out prompts that a version has in train
    moved: int = 0  # rows of moved_prompts that go from train to validation
    superseded: int = 0  # rows of prompts that the preferred version answers differently


def merge(
    datasets: Sequence[Dataset],
    root: Location,
    name: str,
    *,
    text_only: bool = False,
    licence: str | None = None,
    prefer: str | None = None,
) -> Derived:
    """Write the rows of several versions as one new version; of rows with the same id, the first is kept.

    A prompt in any version's validation split goes to validation with all its completions, so nothing leaks into train.

    Args:
        datasets: the versions to merge, in order.
        root: the folder of all datasets.
        name: the name of the new dataset.
        text_only: drop token ids and soft labels.
        licence: the licence for the card; None: the licence that all versions share.
        prefer: the version whose rows are kept for prompts that the versions answer differently; None: keep all rows.

    Raises:
        UsageError: the name is not valid, there are fewer than two versions or one is repeated, or `prefer` does not name
            exactly one of them.
        DatasetRefused: a version is damaged, or the versions' soft labels are incompatible.
    """
    check_name(name)
    manifests = [dataset.manifest for dataset in datasets]
    labels = [manifest.label for manifest in manifests]
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise UsageError(f"merge got {', '.join(labels) or 'no version'}", fix="name two or more different versions")
    preferred = None if prefer is None else index_of_preferred(datasets, prefer)
    if not text_only:
        _check_compatible(manifests)
    for dataset in datasets:
        dataset.check()
    disagreements = find_disagreements(datasets)
    totals = _count_rows(datasets, disagreements, preferred)
    notes = (*_merge_notes(totals), *_disagreement_notes(disagreements, labels, preferred, totals.superseded))
    origin = _merged_origin(manifests, notes, text_only=text_only, licence=licence)
    with new_version(root, name, origin) as version:
        _write_rows(version, datasets, totals, disagreements, preferred)
    counts = {
        "rows_read": totals.rows,
        "repeated": totals.repeated,
        "moved_to_validation": totals.moved,
        "moved_prompts": len(totals.moved_prompts),
    }
    return Derived(version.dataset, counts, notes, disagreements)


def _merged_origin(
    manifests: Sequence[Manifest], notes: Sequence[str], *, text_only: bool, licence: str | None
) -> Origin:
    """Return the origin of the merged version; what differs between the versions is left out of it."""
    labels = [manifest.label for manifest in manifests]
    teachers = list(dict.fromkeys(one for m in manifests for one in (m.teacher, *m.more_teachers)))
    return Origin(
        made_by="merge",
        how="; ".join([" and ".join(labels) + (", text only" if text_only else ""), *notes]),
        teacher=teachers[0],
        more_teachers=tuple(teachers[1:]),
        parents=tuple(labels),
        soft=None if text_only else manifests[0].soft,
        mode=_common([m.mode for m in manifests]),
        sampling=_common([m.sampling for m in manifests]),
        licence=licence or _common([m.licence for m in manifests]),
    )


def _write_rows(
    version: NewVersion,
    datasets: Sequence[Dataset],
    totals: _MergeCounts,
    disagreements: Disagreements,
    preferred: int | None,
) -> None:
    """Write the rows of all versions, each to its split."""
    taken: set[bytes] = set()
    for place, split in ((place, split) for place in range(len(datasets)) for split in SPLITS):
        for batch in datasets[place].batches(split):
            prompts = [hash_text(prompt) for prompt in batch.column("prompt_id").to_pylist()]
            new = [
                disagreements.takes_rows_of(prompt, place, preferred) and _add_if_new(taken, hash_text(id_))
                for prompt, id_ in zip(prompts, batch.column("id").to_pylist(), strict=True)
            ]
            held = [split == "validation" or prompt in totals.held_out for prompt in prompts]
            rows = conform_to_schema(batch, version.schema)
            version.add("train", filter_by_mask(rows, [n and not h for n, h in zip(new, held, strict=True)]))
            version.add("validation", filter_by_mask(rows, [n and h for n, h in zip(new, held, strict=True)]))


def _count_rows(datasets: Sequence[Dataset], disagreements: Disagreements, preferred: int | None) -> _MergeCounts:
    totals = _MergeCounts()
    for dataset in datasets:
        for (prompt,) in columns(dataset, "prompt_id", splits=("validation",)):
            totals.held_out.add(hash_text(prompt))
    ids: set[bytes] = set()
    for place, dataset in enumerate(datasets):
        for split in SPLITS:
            for id_, prompt in columns(dataset, "id", "prompt_id", splits=(split,)):
                totals.rows += 1
                if not disagreements.takes_rows_of(hash_text(prompt), place, preferred):
                    totals.superseded += 1
                elif not _add_if_new(ids, hash_text(id_)):
                    totals.repeated += 1
                elif split == "train" and hash_text(prompt) in totals.held_out:
                    totals.moved += 1
                    totals.moved_prompts.add(hash_text(prompt))
    return totals


def _merge_notes(totals: _MergeCounts) -> Iterator[str]:
    if totals.repeated:
        yield f"{pluralize(totals.repeated, 'row')} left out: a version named before has the same id"
    if totals.moved:
        yield (
            f"{pluralize(len(totals.moved_prompts), 'prompt')} ({pluralize(totals.moved, 'row')}) moved from train to "
            "validation: another version holds them out, and in train they would leak"
        )


def _disagreement_notes(
    disagreements: Disagreements, labels: Sequence[str], preferred: int | None, superseded: int
) -> Iterator[str]:
    """Report the prompts with differing answers, and whose answers were kept."""
    if disagreements.prompts:
        settled = 0 if preferred is None else disagreements.count_settled(preferred)
        unsettled = len(disagreements.prompts) - settled
        examples = "; ".join(map(str, disagreements.examples))
        ends = (
            [f"for {settled} the answers of {labels[preferred]} were kept"] if preferred is not None and settled else []
        )
        if unsettled:
            ends.append(
                f"for {unsettled} all answers were kept (use --prefer {' or --prefer '.join(labels)} to keep those of one "
                "version)"
            )
        yield f"{pluralize(len(disagreements.prompts), 'prompt')} with differing answers ({examples}): {', '.join(ends)}"
    if superseded and preferred is not None:
        rows = pluralize(superseded, "row")
        yield f"{rows} left out: the preferred version {labels[preferred]} has other answers to their prompts"


def _check_compatible(manifests: Sequence[Manifest]) -> None:
    """Raise DatasetRefused unless all versions have soft labels of one kind, tokenizer and vocabulary."""
    if all(manifest.soft is None for manifest in manifests):
        return
    first = manifests[0]
    for other in manifests[1:]:
        same_teacher = other.teacher == first.teacher
        for what, one, two in [
            ("labels", str(first.soft or "text only"), str(other.soft or "text only")),
            ("tokenizer", first.teacher.tokenizer_sha256, other.teacher.tokenizer_sha256),
            ("teachers", _kind(first), _kind(other)),
            ("vocabulary size", first.teacher.vocabulary_size, other.teacher.vocabulary_size),
        ]:
            if one != two or (one is None and not same_teacher):
                raise DatasetRefused(
                    f"{first.label} and {other.label} have incompatible soft labels: {what} {_short(one)} and "
                    f"{_short(two)}",
                    fix="remove one of them, or merge only their texts with --text-only",
                )


# --------------------------------------------------------------------------------------------------------------- helpers


def _kind(manifest: Manifest) -> str:
    return "encoder-decoder" if manifest.teacher.encoder_decoder else "causal"


def _add_if_new(known: set[bytes], key: bytes) -> bool:
    """Add a key and return whether it is new."""
    before = len(known)
    known.add(key)
    return len(known) > before


def _common(values: Sequence[Value | None]) -> Value | None:
    """Return the value if all are equal, else None."""
    first, *others = values
    return first if all(other == first for other in others) else None


def _short(value: object) -> str:
    if value is None:
        return "unknown"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
