"""Ragged soft labels as padded arrays."""

import numpy as np
import pytest

from stillhouse.dataset.encodings import pad_entries

IDS = np.arange(10, 16, dtype=np.int32)
LOGPROBS = np.log(np.linspace(0.1, 0.6, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("counts", "ids", "present"),
    [
        ([3, 1, 0, 2], [[10, 11, 12], [13, -7, -7], [-7, -7, -7], [14, 15, -7]], [3, 1, 0, 2]),
        ([2, 2, 2], [[10, 11], [12, 13], [14, 15]], [2, 2, 2]),
        ([6], [[10, 11, 12, 13, 14, 15]], [6]),
    ],
)
def test_each_position_has_its_entries_first(counts: list[int], ids: list[list[int]], present: list[int]) -> None:
    padded = pad_entries(IDS, LOGPROBS, np.array(counts), no_token=-7)
    assert padded.token_ids.tolist() == ids
    assert padded.token_ids.dtype == np.int32 and padded.logprobs.dtype == np.float32
    assert padded.present.sum(axis=1).tolist() == present
    np.testing.assert_array_equal(padded.logprobs[padded.present], LOGPROBS)
    assert np.all(np.isneginf(padded.logprobs[~padded.present]))
    assert np.all((padded.token_ids == -7) == ~padded.present)


@pytest.mark.parametrize("counts", [[3, 1, 0, 2], [2, 2, 2]])
def test_the_arrays_are_new(counts: list[int]) -> None:
    """Columns of a file are read-only."""
    ids, logprobs = IDS.copy(), LOGPROBS.copy()
    ids.flags.writeable = logprobs.flags.writeable = False
    padded = pad_entries(ids, logprobs, np.array(counts), no_token=0)
    padded.token_ids[0, 0], padded.logprobs[0, 0] = 5, -1.0
    assert ids[0] == 10 and logprobs[0] == LOGPROBS[0]


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_without_entries_there_are_no_columns(counts: list[int]) -> None:
    padded = pad_entries(IDS[:0], LOGPROBS[:0], np.array(counts, np.int64), no_token=-1)
    assert [one.shape for one in padded] == [(len(counts), 0)] * 3
