"""Several finished versions as one new version.

    merged = merge([find_dataset(root, "a"), find_dataset(root, "b")], root, "both")
    merged.dataset.manifest.rows, merged.notes

Rows stream through; what is held of each is its id, 16 bytes, so memory does not grow with text or soft labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.columns import completion_schema
from pipeline.dataset.derive import SPLITS, Derived, check_name, chosen, counted, fitting
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.store import Dataset
from pipeline.dataset.writer import Origin, new_version
from pipeline.errors import DatasetRefused, UsageError
from pipeline.label_settings import encoding_of
from pipeline.records import Split
from pipeline.storage.location import Location

Value = TypeVar("Value")


@dataclass
class _Seen:
    """What one look at the ids of all rows says about a merge."""

    rows: int = 0
    repeated: int = 0  # rows whose id an earlier row has
    held_out: set[bytes] = field(default_factory=set)  # prompts that some version holds out
    moved_prompts: set[bytes] = field(default_factory=set)  # of those, the ones that another version learns from
    moved: int = 0  # rows of them


def merge(
    datasets: Sequence[Dataset], root: Location, name: str, *, text_only: bool = False, licence: str | None = None
) -> Derived:
    """The rows of several versions as one new version; of rows with one id the first wins.

    A prompt that any of them holds out is held out of the new version, with all its completions: nothing leaks.

    Raises:
        UsageError: the name is no name, or there are not two different versions.
        DatasetRefused: one is damaged, or their soft labels do not go together.
    """
    check_name(name)
    manifests = [dataset.manifest for dataset in datasets]
    labels = [manifest.label for manifest in manifests]
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise UsageError(f"merge has {', '.join(labels) or 'nothing'}: name two or more different versions")
    if not text_only:
        _check_alike(manifests)
    for dataset in datasets:
        dataset.check()
    seen = _look(datasets)
    notes = tuple(_merge_notes(seen))
    teachers = list(dict.fromkeys(one for m in manifests for one in (m.teacher, *m.more_teachers)))
    origin = Origin(
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
    schema = completion_schema(soft=encoding_of(origin.soft))
    taken: set[bytes] = set()
    with new_version(root, name, origin) as version:
        for dataset, split in ((dataset, split) for dataset in datasets for split in SPLITS):
            for batch in dataset.batches(split):
                prompts = [_key(prompt) for prompt in batch.column("prompt_id").to_pylist()]
                new = [_add(taken, _key(id_)) for id_ in batch.column("id").to_pylist()]
                held = [split == "validation" or prompt in seen.held_out for prompt in prompts]
                rows = fitting(batch, schema)
                version.add("train", chosen(rows, [n and not h for n, h in zip(new, held, strict=True)]))
                version.add("validation", chosen(rows, [n and h for n, h in zip(new, held, strict=True)]))
    counts = {
        "rows_read": seen.rows,
        "repeated": seen.repeated,
        "moved_to_validation": seen.moved,
        "moved_prompts": len(seen.moved_prompts),
    }
    return Derived(version.dataset, counts, notes)


def _look(datasets: Sequence[Dataset]) -> _Seen:
    seen = _Seen()
    for dataset in datasets:
        for (prompt,) in _columns(dataset, "validation", "prompt_id"):
            seen.held_out.add(_key(prompt))
    ids: set[bytes] = set()
    for dataset in datasets:
        for split in SPLITS:
            for id_, prompt in _columns(dataset, split, "id", "prompt_id"):
                seen.rows += 1
                if not _add(ids, _key(id_)):
                    seen.repeated += 1
                elif split == "train" and _key(prompt) in seen.held_out:
                    seen.moved += 1
                    seen.moved_prompts.add(_key(prompt))
    return seen


def _merge_notes(seen: _Seen) -> Iterator[str]:
    if seen.repeated:
        yield f"{counted(seen.repeated, 'row')} left out: a version named before has the same id"
    if seen.moved:
        yield (
            f"{counted(len(seen.moved_prompts), 'prompt')} ({counted(seen.moved, 'row')}) moved from train to "
            "validation: another version holds them out, and in train they would leak"
        )


def _check_alike(manifests: Sequence[Manifest]) -> None:
    """Refuse soft labels that do not mean the same."""
    if all(manifest.soft is None for manifest in manifests):
        return
    mend = "merge their texts alone with --text-only"
    first = manifests[0]
    for other in manifests[1:]:
        same_teacher = other.teacher == first.teacher
        for what, one, two in [
            ("labels", str(first.soft or "text alone"), str(other.soft or "text alone")),
            ("tokenizer", first.teacher.tokenizer_sha256, other.teacher.tokenizer_sha256),
            ("teachers", _kind(first), _kind(other)),
            ("vocabulary size", first.teacher.vocabulary_size, other.teacher.vocabulary_size),
        ]:
            if one != two or (one is None and not same_teacher):
                raise DatasetRefused(
                    f"{first.label} and {other.label} have soft labels that do not go together: {what} "
                    f"{_short(one)} and {_short(two)}. Leave one out, or {mend}."
                )


# ---------------------------------------------------------------------------------------------------------------- pieces


def _kind(manifest: Manifest) -> str:
    return "encoder-decoder" if manifest.teacher.encoder_decoder else "causal"


def _columns(dataset: Dataset, split: Split, *names: str) -> Iterator[tuple[str, ...]]:
    """Some string columns of a split, row by row."""
    for entry in dataset.files(split):
        with dataset.open(entry) as parquet:
            for batch in parquet.iter_batches(columns=list(names)):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def _key(name: str) -> bytes:
    """16 bytes that stand for an id: a request's key or a prompt's hash is that already, in hex digits."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _add(known: set[bytes], key: bytes) -> bool:
    """Put a key in; whether it is new."""
    before = len(known)
    known.add(key)
    return len(known) > before


def _common(values: Sequence[Value | None]) -> Value | None:
    """What all have in common; None where they differ."""
    first, *others = values
    return first if all(other == first for other in others) else None


def _short(value: object) -> str:
    if value is None:
        return "not known"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
