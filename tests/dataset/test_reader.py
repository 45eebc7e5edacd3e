"""Reading by row group: every row once, of the wanted columns alone, with a bounded number of them in memory."""

from __future__ import annotations

import dataclasses
import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.dataset.manifest import FileEntry
from stillhouse.dataset.reader import Cache, ColumnStatistics, RowGroup, SplitReader, cache_windows, list_lengths
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused
from tests.labelled_rows import completion, numbered, write

TOKENS = ["prompt_token_ids", "completion_token_ids"]
SAMPLED = [*TOKENS, "sampled_token_ids", "sampled_counts"]


class CountingFile(io.FileIO):
    """A file that adds up the bytes that are read of it."""

    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        got = super().read(-1 if size is None else size) or b""
        CountingFile.bytes_read += len(got)
        return got

    def readinto(self, buffer: Any) -> int:
        got = super().readinto(buffer) or 0
        CountingFile.bytes_read += got
        return got


class CountingDataset(Dataset):
    """A dataset whose files are counted."""

    def open(self, entry: FileEntry) -> pq.ParquetFile:
        return pq.ParquetFile(CountingFile(self.folder / entry.path))


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Three row groups in three files, with much text that does not compress."""
    text = random.Random(0).randbytes(1_000_000).hex()
    dataset = write(tmp_path, numbered([4, 2, 3], "sampled", text), "sampled", monkeypatch)
    CountingFile.bytes_read = 0
    return CountingDataset(dataset.folder, dataset.manifest)


def column_bytes(dataset: Dataset, columns: list[str]) -> int:
    """What these columns take in the files."""
    total = 0
    for entry in dataset.files("train"):
        footer = pq.read_metadata(dataset.folder / entry.path)
        leaves = [footer.row_group(0).column(leaf) for leaf in range(footer.num_columns)]
        total += sum(leaf.total_compressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] in columns)
    return total


def test_every_row_stands_where_the_reader_says(counted: Dataset) -> None:
    reader = SplitReader(counted, "train", ["id"])
    assert [(group.first, group.rows) for group in reader.groups] == [(0, 4), (4, 2), (6, 3)]
    ids = [reader.read(number)["id"].to_pylist() for number in (2, 0, 1)]
    assert ids == [["row-6", "row-7", "row-8"], ["row-0", "row-1", "row-2", "row-3"], ["row-4", "row-5"]]
    assert len(reader) == 9
    assert len(SplitReader(counted, "validation", ["id"])) == 0


def test_opening_reads_footers_and_reading_the_wanted_columns_alone(counted: Dataset) -> None:
    size = sum(entry.bytes for entry in counted.files("train"))
    reader = SplitReader(counted, "train", SAMPLED)
    opened = CountingFile.bytes_read
    assert opened <= 3 * (64 << 10)  # what Parquet readers take of a file's end at once
    for number in range(3):
        assert reader.read(number).column_names == SAMPLED
    again = 3 * (72 << 10)  # each file is opened once more, and small gaps between columns are read along
    assert CountingFile.bytes_read - opened <= column_bytes(counted, SAMPLED) + again
    assert CountingFile.bytes_read < size / 2
    assert column_bytes(counted, ["completion"]) > size / 2


def test_the_bytes_in_memory_are_those_of_numbers_and_text(counted: Dataset) -> None:
    reader = SplitReader(counted, "train", SAMPLED)
    rows = [completion(number, "sampled") for number in range(4)]
    numbers = 0
    for row in rows:
        assert row.trace is not None
        assert row.trace.soft is not None
        numbers += len(row.trace.prompt_token_ids) + len(row.trace.completion_token_ids)
        numbers += 2 * len(row.trace.soft.token_ids)
    assert reader.groups[0].nbytes == 4 * numbers
    assert SplitReader(counted, "train", ["completion"]).groups[0].nbytes > 100_000


def test_footers_tell_the_highest_token_and_what_is_missing(counted: Dataset) -> None:
    facts = SplitReader(counted, "train", ["completion_token_ids"]).groups[0].statistics
    tokens = [completion(number, "sampled").trace.completion_token_ids for number in range(4)]  # type: ignore[union-attr]
    assert facts == (ColumnStatistics(nulls=0, highest=max(int(ids.max()) for ids in tokens)),)
    assert SplitReader(counted, "train", ["reasoning"]).groups[0].statistics[0].nulls == 4
    assert SplitReader(counted, "train", ["prompt"]).groups[0].statistics == (ColumnStatistics(None, None),)


def test_a_reader_can_be_handed_to_another_process(counted: Dataset) -> None:
    reader = SplitReader(Dataset(counted.folder, counted.manifest), "train", TOKENS)
    assert pickle.loads(pickle.dumps(reader)).read(1).equals(reader.read(1))


def test_what_does_not_fit_the_manifest_is_refused(counted: Dataset) -> None:
    with pytest.raises(DatasetRefused, match=r"train-00000-of-00003\.parquet .* has no column top_token_ids"):
        SplitReader(counted, "train", ["top_token_ids"])
    files = tuple(entry.model_copy(update={"rows": 5}) for entry in counted.manifest.files)
    other = dataclasses.replace(counted, manifest=counted.manifest.model_copy(update={"files": files}))
    with pytest.raises(DatasetRefused, match="has 4 rows, and the manifest lists 5"):
        SplitReader(other, "train", ["id"])


def test_lengths_of_lists(counted: Dataset) -> None:
    import pyarrow as pa

    assert list_lengths(pa.chunked_array([[[1, 2], None], [[], [3]]], pa.list_(pa.int32()))).tolist() == [2, -1, 0, 1]


# ------------------------------------------------------------------------------------------------------------- in memory


def groups_of(sizes: list[int]) -> list[RowGroup]:
    entry = FileEntry(path="x", kind="train", rows=0, bytes=0, sha256="")
    return [RowGroup(entry, number, 0, 1, size, ()) for number, size in enumerate(sizes)]


def counting(decoded: list[int]) -> Callable[[int], int]:
    def decode(number: int) -> int:
        decoded.append(number)
        return number * 10

    return decode


def test_the_cache_holds_what_was_used_last_within_its_bound() -> None:
    decoded: list[int] = []
    cache = Cache(groups_of([40, 40, 40, 150]), counting(decoded), capacity=100)
    assert [cache[number] for number in (0, 1, 0, 2, 0, 1)] == [0, 10, 0, 20, 0, 10]
    assert decoded == [0, 1, 2, 1]  # 1 had to go for 2, since 0 was used after it
    assert len(cache) == 2
    assert cache[3] == 30
    assert len(cache) == 1  # larger than the bound, and alone
    assert len(pickle.loads(pickle.dumps(Cache(groups_of([1]), len)))) == 0  # type: ignore[arg-type]


@given(
    sizes=st.lists(st.integers(1, 50), max_size=30),
    capacity=st.integers(1, 120),
    seed=st.integers(0, 99),
)
def test_a_window_at_a_time_decodes_every_group_once(sizes: list[int], capacity: int, seed: int) -> None:
    groups, decoded = groups_of(sizes), list[int]()
    cache = Cache(groups, counting(decoded), capacity)
    shuffled = np.random.default_rng(seed)
    order = shuffled.permutation(len(sizes)).tolist()
    parts = list(cache_windows(groups, order, capacity))
    assert [number for part in parts for number in part] == order
    for part in parts:
        assert len(part) == 1 or sum(sizes[number] for number in part) <= capacity
        for number in shuffled.choice(part, 20):
            assert cache[int(number)] == number * 10
            assert len(cache) == 1 or sum(sizes[held] for held in cache._cached) <= capacity
    assert len(decoded) == len(set(decoded))
