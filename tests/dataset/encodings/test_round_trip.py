"""Every encoding: what goes into Arrow and Parquet comes back, by rows and packed, sliced, chunked and with nulls."""

import io
import math
from pathlib import Path
from typing import get_args

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.dataset.columns import completion_at, completion_row, completion_schema, record_batch
from stillhouse.dataset.encodings import PackedLabels, find_encoding
from stillhouse.dataset.encodings.base import flatten_lists
from stillhouse.dataset.encodings.top_k import round_logprobs
from stillhouse.dataset.parquet import write_options
from stillhouse.records import EncodingName, SampledLabels, SoftLabels
from tests.dataset.encodings.made import HIGHEST, SEEDS, completion, draws, top_k_labels

pytestmark = pytest.mark.numeric

ENCODINGS: tuple[EncodingName, ...] = get_args(EncodingName)
Labels = SoftLabels | SampledLabels | None


def made(name: EncodingName, generator: np.random.Generator, times: list[int | None], size: int) -> list[Labels]:
    """The labels of some completions; None where there are none."""
    return [
        None
        if time is None
        else top_k_labels(generator, time, size)
        if name == "top-k"
        else SampledLabels.from_draws(draws(generator, time, size))
        for time in times
    ]


def batch_of(name: EncodingName, labels: list[Labels]) -> pa.RecordBatch:
    rows = [completion_row(completion(one, f"k{place}"), soft=name) for place, one in enumerate(labels)]
    return record_batch(rows, completion_schema(soft=name))


def expected(labels: list[Labels]) -> list[tuple[list[int], list[float], float]]:
    """Each position's token ids, log-probabilities and tail, one at a time."""
    positions = []
    for one in labels:
        if isinstance(one, SoftLabels):
            listed, tail = round_logprobs(one.logprobs), round_logprobs(one.tail_logprob)
            positions += [(one.token_ids[t].tolist(), listed[t].tolist(), float(tail[t])) for t in range(len(one))]
        elif isinstance(one, SampledLabels):
            for t in range(len(one)):
                own = slice(one.offsets[t], one.offsets[t + 1])
                shares = [math.log(count / one.draws[t]) for count in one.counts[own].tolist()]
                positions.append((one.token_ids[own].tolist(), shares, -math.inf))
    return positions


def positions_of(packed: PackedLabels) -> list[tuple[list[int], list[float], float]]:
    assert packed.token_ids.dtype == np.int32 and packed.logprobs.dtype == np.float32
    assert packed.offsets.dtype == np.int64 and packed.tail_logprob.dtype == np.float32
    assert packed.offsets[0] == 0 and packed.offsets[-1] == len(packed.token_ids) == len(packed.logprobs)
    assert len(packed.tail_logprob) == len(packed.offsets) - 1
    return [
        (packed.token_ids[start:end].tolist(), packed.logprobs[start:end].tolist(), float(tail))
        for start, end, tail in zip(packed.offsets[:-1], packed.offsets[1:], packed.tail_logprob, strict=True)
    ]


def assert_same(packed: PackedLabels, labels: list[Labels]) -> None:
    found, wanted = positions_of(packed), expected(labels)
    assert [position[0] for position in found] == [position[0] for position in wanted]
    assert [position[2] for position in found] == [position[2] for position in wanted]
    for (_, mine, _), (_, theirs, _) in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=40)
@given(
    seed=SEEDS,
    times=st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=1, max_size=6),
    size=st.integers(1, 60),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 6)),
)
def test_labels_come_back(
    name: EncodingName, seed: int, times: list[int | None], size: int, cut: tuple[int, int]
) -> None:
    labels = made(name, np.random.default_rng(seed), times, size)
    batch = batch_of(name, labels)
    encoding = find_encoding(name)
    assert_same(encoding.decode(batch), labels)
    start, length = cut
    part = labels[start : start + length]
    assert_same(encoding.decode(batch.slice(start, length)), part)
    assert_same(encoding.decode(batch.slice(start, length).select(list(encoding.columns))), part)
    chunked = pa.Table.from_batches([batch.slice(start, length), batch])
    assert_same(encoding.decode(chunked), part + labels)
    assert_same(encoding.decode(chunked.slice(1)), (part + labels)[1:])
    for place, one in enumerate(labels):
        trace = completion_at(batch, place).trace
        assert (trace is None) == (one is None)
        if trace is not None:
            again = batch_of(name, [trace.soft])
            assert_same(encoding.decode(again), [one])  # and a second time through changes nothing


@pytest.mark.parametrize("name", ENCODINGS)
def test_no_rows_have_no_positions(name: EncodingName) -> None:
    encoding = find_encoding(name)
    schema = completion_schema(soft=name)
    for rows in (
        schema.empty_table(),
        batch_of(name, [None]),
        batch_of(name, [None]).slice(1),
        pa.table(schema.empty_table()),
    ):
        packed = encoding.decode(rows)
        assert packed.offsets.tolist() == [0] and len(packed.token_ids) == len(packed.tail_logprob) == 0


@pytest.mark.parametrize("name", ENCODINGS)
def test_parquet_keeps_them_and_others_read_it(name: EncodingName, tmp_path: Path) -> None:
    labels = made(name, np.random.default_rng(7), [3, None, 40, 1], 50)
    table = pa.Table.from_batches([batch_of(name, labels)])
    file = tmp_path / "labels.parquet"
    pq.write_table(table, file, **write_options(table))
    encoding = find_encoding(name)
    assert_same(encoding.decode(pq.read_table(file, columns=list(encoding.columns))), labels)
    assert pq.read_schema(file).equals(completion_schema(soft=name))
    found = duckdb.sql(f"select {', '.join(encoding.columns)} from '{file}'").fetchall()
    frame = polars.read_parquet(file)
    for place, column in enumerate(encoding.columns):
        assert [row[place] for row in found] == table[column].to_pylist()
        assert frame[column].to_list() == table[column].to_pylist()


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_columns_have_the_encodings_that_were_asked_for(name: EncodingName) -> None:
    table = pa.Table.from_batches([batch_of(name, made(name, np.random.default_rng(1), [40, 9], 50))])
    stream = io.BytesIO()
    pq.write_table(table, stream, **write_options(table))
    group = pq.read_metadata(stream).row_group(0)
    found = {
        group.column(place).path_in_schema.split(".")[0]: group.column(place) for place in range(group.num_columns)
    }
    for column, wanted in find_encoding(name).parquet_encodings.items():
        assert wanted in found[column].encodings and "RLE_DICTIONARY" not in found[column].encodings
    assert "RLE_DICTIONARY" in found["finish_reason"].encodings
    assert {column.compression for column in found.values()} == {"ZSTD"}


def test_row_groups_are_small_enough_to_hold() -> None:
    many = batch_of("top-k", [top_k_labels(np.random.default_rng(0), 1, 3)] * 1100)
    assert write_options(pa.Table.from_batches([many]))["row_group_size"] == 1000
    heavy = pa.Table.from_batches([batch_of("top-k", [top_k_labels(np.random.default_rng(0), 100, 400)] * 200)])
    rows = write_options(heavy)["row_group_size"]
    assert 16 << 20 < rows * heavy.nbytes / 200 <= 32 << 20
    assert write_options(many.schema.empty_table())["row_group_size"] == 1000


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(KeyError, match="use one of top-k, sampled"):
        find_encoding("top-p")  # type: ignore[arg-type]


@settings(max_examples=60)
@given(seed=SEEDS, time=st.integers(1, 4), count=st.integers(1, 300))
def test_counts_are_of_the_draws(seed: int, time: int, count: int) -> None:
    drawn = draws(np.random.default_rng(seed), time, count)
    labels = SampledLabels.from_draws(drawn)
    assert len(labels) == time and labels.draws.tolist() == [count] * time
    for t in range(time):
        own = slice(labels.offsets[t], labels.offsets[t + 1])
        ids, counts = labels.token_ids[own].tolist(), labels.counts[own].tolist()
        assert dict(zip(ids, counts, strict=True)) == dict(
            zip(*map(list, np.unique(drawn[t], return_counts=True)), strict=True)
        )
        assert [(-c, i) for c, i in zip(counts, ids, strict=True)] == sorted(
            (-c, i) for c, i in zip(counts, ids, strict=True)
        )


def test_more_draws_than_a_count_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65,535"):
        SampledLabels.from_draws(np.zeros((1, 65_536), np.int64))
    assert SampledLabels.from_draws(np.full((1, 65_535), HIGHEST)).counts.tolist() == [65_535]


def test_sampled_labels_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths of sampled labels differ"):
        SampledLabels(np.zeros(2, np.int32), np.ones(2, np.uint16), np.array([0, 1]))


def test_a_null_list_is_an_empty_one_whatever_lies_behind_it() -> None:
    """As Arrow allows: a null's place may still have items, here 3 and 4."""
    values, offsets = pa.array([1, 2, 3, 4, 5], pa.int32()), pa.array([0, 2, 4, 5], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, values, mask=pa.array([False, True, False]))
    for taken, items, ends in ((lists, [1, 2, 5], [0, 2, 2, 3]), (lists.slice(1), [5], [0, 0, 1])):
        found, bounds = flatten_lists(taken)
        assert (found.tolist(), bounds.tolist()) == (items, ends)
