"""Make the dataset of an ensemble from datasets of its teachers: the mixture of their soft labels, without any request.

    >>> ensemble([dataset, dataset], Path("data/labels"), "both")
    Traceback (most recent call last):
    stillhouse.errors.UsageError: the datasets are words/v001, words/v001. Name two or more different versions.

The teachers must have labelled the same completions, token by token: the first wrote them, and the others scored them
(`label.mode: score` with `prompts.score_tokens: completion_token_ids`). Rows are matched by prompt and completion tokens;
rows that are not in every version are left out and counted. Prompt, text and split of a row are those of the first version;
mixture.py has the formulas.

Memory holds a 16-byte hash of each row of the other versions; labels are read a row group at a time, each once if the
versions have their rows in the same order.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.dataset.derive import Derived, check_name, conform_to_schema
from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.encodings.base import list_at
from stillhouse.dataset.manifest import Manifest
from stillhouse.dataset.mixture import Floats, mix_draws, mix_logprobs, mix_top_k, mixture_draws, normalised
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.writer import NewVersion, Origin, new_version
from stillhouse.errors import DatasetRefused, UsageError
from stillhouse.formatting import pluralize
from stillhouse.recipe.label import SoftSettings, encoding_of
from stillhouse.records import SPLITS, SampledLabels, SoftLabels, content_hash
from stillhouse.storage.location import Location

_GROUPS_IN_MEMORY = 2  # of each version
_TRACE = ("completion_token_ids", "completion_logprobs")


def ensemble(datasets: Sequence[Dataset], root: Location, name: str, weights: Sequence[float] | None = None) -> Derived:
    """Write the mixture of several teachers' labels as a new version.

    Args:
        datasets: one version of each teacher; texts and splits are those of the first.
        root: the folder of all datasets.
        name: the name of the new dataset.
        weights: one positive number for each version; None: all the same.

    Raises:
        UsageError: the name is not valid, there are fewer than two different versions, or the weights do not fit them.
        DatasetRefused: a version is damaged, the soft labels are not of one encoding and tokenizer, or no row is in all.
    """
    check_name(name)
    manifests = [dataset.manifest for dataset in datasets]
    shares = _shares(manifests, weights)
    _check_compatible(manifests)
    for dataset in datasets:
        dataset.check()
    others = [_Rows(dataset) for dataset in datasets[1:]]
    origin = _origin(manifests, shares)
    read = kept = 0
    with new_version(root, name, origin) as version:
        for split in SPLITS:
            for batch in datasets[0].batches(split):
                rows = _mixed(batch, others, shares, version)
                version.add(split, rows)
                read, kept = read + batch.num_rows, kept + rows.num_rows
        if not kept:
            names = " and ".join(one.label for one in manifests[1:])
            raise DatasetRefused(
                f"no row of {manifests[0].label} has the same completion in {names}",
                fix="have the other teachers score the first one's completions, with label.mode: score and "
                "prompts.score_tokens: completion_token_ids",
            )
    left_out = read - kept
    notes = (f"{pluralize(left_out, 'row')} left out: not in every version",) if left_out else ()
    return Derived(version.dataset, {"rows_read": read, "kept": kept, "left_out": left_out}, notes)


def _shares(manifests: Sequence[Manifest], weights: Sequence[float] | None) -> Floats:
    """Return the weights, divided by their sum."""
    labels = [manifest.label for manifest in manifests]
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise UsageError(f"the datasets are {', '.join(labels)}", fix="name two or more different versions")
    given = [1.0] * len(labels) if weights is None else list(weights)
    if len(given) != len(labels):
        raise UsageError(
            f"there are {pluralize(len(labels), 'dataset')}",
            setting="--weights",
            value=",".join(f"{one:g}" for one in given),
            fix="give one number for each, such as 2,1",
        )
    try:
        return normalised(given)
    except ValueError as error:
        value = ",".join(f"{one:g}" for one in given)
        raise UsageError(
            str(error), setting="--weights", value=value, fix="give positive numbers, such as 2,1"
        ) from None


def _check_compatible(manifests: Sequence[Manifest]) -> None:
    """Raise DatasetRefused unless all versions have soft labels of one encoding and of one tokenizer."""
    first = manifests[0]
    for one in manifests:
        if one.soft is None:
            raise DatasetRefused(f"{one.label} has no soft labels", fix="label with label.soft set")
        for what, ours, theirs in (
            ("encodings", encoding_of(first.soft), encoding_of(one.soft)),
            ("tokenizers", first.teacher.tokenizer_sha256, one.teacher.tokenizer_sha256),
            ("kinds of teacher", first.teacher.encoder_decoder, one.teacher.encoder_decoder),
        ):
            if ours != theirs or ours is None:
                raise DatasetRefused(
                    f"{first.label} and {one.label} have different {what}, so their labels cannot be averaged",
                    fix="use teachers of one tokenizer, labelled with the same label.soft",
                )


def _origin(manifests: Sequence[Manifest], shares: Floats) -> Origin:
    first = manifests[0]
    teachers = list(dict.fromkeys(one for m in manifests for one in (m.teacher, *m.more_teachers)))
    weighted = " + ".join(f"{share:.4g} {m.label}" for share, m in zip(shares, manifests, strict=True))
    licences = {manifest.licence for manifest in manifests}
    return Origin(
        made_by="ensemble",
        how=weighted,
        teacher=teachers[0],
        more_teachers=tuple(teachers[1:]),
        parents=tuple(manifest.label for manifest in manifests),
        soft=_soft([manifest.soft for manifest in manifests if manifest.soft is not None], shares),
        mode=first.mode,
        sampling=first.sampling,
        licence=first.licence if len(licences) == 1 else None,
    )


def _soft(settings: Sequence[SoftSettings], shares: Floats) -> SoftSettings:
    """Return the settings of the mixture's labels."""
    if settings[0].encoding == "top-k":
        return settings[0].model_copy(update={"k": max(one.k or 0 for one in settings)})
    draws = np.array([one.draws or 0 for one in settings])
    return settings[0].model_copy(update={"draws": mixture_draws(draws, shares)})


# ------------------------------------------------------------------------------------------------------------------ rows


@dataclass(frozen=True)
class _Place:
    """Where a row is: its file, its row group and its place in it."""

    file: int
    group: int
    row: int


class _Rows:
    """The rows of a version by prompt and completion tokens; equal rows are taken in their order."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._files = dataset.files(*SPLITS)
        encoding = encoding_of(dataset.manifest.soft)
        assert encoding is not None
        self._columns = [*_TRACE, *find_encoding(encoding).columns]
        self._places: dict[bytes, deque[_Place]] = {}
        for place, key in self._keys():
            self._places.setdefault(key, deque()).append(place)
        self._read = lru_cache(_GROUPS_IN_MEMORY)(self._read_group)

    def take(self, key: bytes) -> tuple[pa.Table, int] | None:
        """Return the next row with this key as a table and its place in it; None if there is none left."""
        places = self._places.get(key)
        if not places:
            return None
        place = places.popleft()
        return self._read(place.file, place.group), place.row

    def has(self, key: bytes) -> bool:
        """Whether a row with this key is left."""
        return bool(self._places.get(key))

    def _keys(self) -> Iterator[tuple[_Place, bytes]]:
        for number, entry in enumerate(self._files):
            with self._dataset.open(entry) as parquet:
                for group in range(parquet.num_row_groups):
                    rows = parquet.read_row_group(group, columns=["prompt_id", _TRACE[0]])
                    for place, key in enumerate(_row_keys(rows)):
                        yield _Place(number, group, place), key

    def _read_group(self, file: int, group: int) -> pa.Table:
        with self._dataset.open(self._files[file]) as parquet:
            return parquet.read_row_group(group, columns=self._columns)


def _row_keys(rows: pa.Table | pa.RecordBatch) -> Iterator[bytes]:
    """Yield a hash of each row's prompt and completion tokens."""
    for place, prompt in enumerate(rows.column("prompt_id").to_pylist()):
        tokens = list_at(rows, _TRACE[0], place)
        data = b"" if tokens is None else np.asarray(tokens, dtype=np.int32).tobytes()
        yield hashlib.blake2b(prompt.encode() + b"\0" + data, digest_size=16).digest()


def _mixed(batch: pa.RecordBatch, others: Sequence[_Rows], shares: Floats, version: NewVersion) -> pa.RecordBatch:
    """Return the rows of a batch of the first version that the others have too, with mixed labels."""
    encoding = find_encoding(_encoding_name(version))
    kept: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "completion_logprobs", *encoding.columns)}
    for place, key in enumerate(_row_keys(batch)):
        if not all(one.has(key) for one in others):
            continue
        found = [(batch, place), *(row for one in others if (row := one.take(key)) is not None)]
        id_ = content_hash([batch.column("id")[place].as_py(), version.origin.how])
        labels = [encoding.labels_at(rows, row) for rows, row in found]
        if any(one is None for one in labels):
            continue
        logprobs = [np.asarray(list_at(rows, _TRACE[1], row)) for rows, row in found]
        kept.append(place)
        columns["id"].append(id_)
        columns["completion_logprobs"].append(mix_logprobs(logprobs, shares.tolist()))
        for name, value in encoding.encode(_mix(labels, shares, seed=int(id_[:15], 16))).items():
            columns[name].append(value)
    rows = conform_to_schema(batch.take(pa.array(kept, pa.int64())), version.schema)
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else rows.column(field.name)
        for field in version.schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=version.schema)


def _mix(labels: Sequence[SoftLabels | SampledLabels | None], shares: Floats, seed: int) -> SoftLabels | SampledLabels:
    top_k = [one for one in labels if isinstance(one, SoftLabels)]
    draws = [one for one in labels if isinstance(one, SampledLabels)]
    return mix_top_k(top_k, shares.tolist()) if top_k else mix_draws(draws, shares.tolist(), seed)


def _encoding_name(version: NewVersion) -> Any:
    name = encoding_of(version.origin.soft)
    assert name is not None
    return name
