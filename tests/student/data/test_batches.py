"""The collator, against a loop over every token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.models.layout import make_token_batch
from stillhouse.records import EncodingName
from stillhouse.student.data.batches import collator, soft_labels_of, tokens_of
from stillhouse.student.data.completion_example import example_of
from stillhouse.student.data.rows import Example
from stillhouse.student.losses.base import PAD_TOKEN_ID
from tests.labelled_rows import completion
from tests.student.data.test_examples import model_of

PAD = 7


def example(number: int, encoding: EncodingName) -> Example:
    return example_of(completion(number, encoding), model_of(1000), soft=True, by_text=False)


@given(numbers=st.lists(st.integers(0, 500), min_size=1, max_size=6), encoding=st.sampled_from(["top-k", "sampled"]))
def test_a_batch_holds_every_entry_in_its_place(numbers: list[int], encoding: EncodingName) -> None:
    examples = [example(number, encoding) for number in numbers]
    batch = collator(PAD)(examples)
    expected = make_token_batch([e.prompt.tolist() for e in examples], [e.completion.tolist() for e in examples], PAD)
    for key in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(getattr(tokens_of(batch), key), getattr(expected, key))
    labels = soft_labels_of(batch)
    assert labels is not None
    position = 0
    for one in examples:
        assert one.soft is not None
        for begin, end, tail in zip(one.soft.offsets, one.soft.offsets[1:], one.soft.tail_logprob, strict=False):
            width = end - begin
            assert labels.token_ids[position, :width].tolist() == one.soft.token_ids[begin:end].tolist()
            assert labels.logprobs[position, :width].tolist() == one.soft.logprobs[begin:end].tolist()
            assert (labels.token_ids[position, width:] == PAD_TOKEN_ID).all()
            assert labels.logprobs[position, width:].isneginf().all()
            assert labels.tail_logprob[position] == tail
            position += 1
    assert labels.token_ids.shape[0] == position == len(expected.targets)
    assert labels.token_ids.shape[1] == max(int(np.diff(one.soft.offsets).max()) for one in examples if one.soft)
    assert (labels.token_ids.dtype, labels.logprobs.dtype) == (torch.int64, torch.float32)


def test_text_alone_has_no_labels() -> None:
    ids = np.arange(3, dtype=np.int32)
    batch = collator(PAD)([Example(ids, ids, None)])
    assert soft_labels_of(batch) is None
    assert batch["labels"].tolist() == [[-100, -100, -100, 0, 1, 2]]


def test_a_position_without_any_entry_is_all_tail() -> None:
    ids = np.arange(2, dtype=np.int32)
    soft = PackedLabels(
        np.array([4], np.int32), np.zeros(1, np.float32), np.array([0, 0, 1]), np.array([0, -np.inf], np.float32)
    )
    labels = soft_labels_of(collator(PAD)([Example(ids, ids, soft)]))
    assert labels is not None
    assert labels.token_ids.tolist() == [[PAD_TOKEN_ID], [4]]
    assert labels.logprobs.tolist() == [[-np.inf], [0]]


@pytest.mark.parametrize("encoding", ["top-k", "sampled"])
def test_the_tensors_do_not_share_the_row_groups_memory(encoding: EncodingName) -> None:
    one = example(3, encoding)
    assert one.soft is not None
    before = one.soft.logprobs.copy()
    batch = collator(PAD)([one])
    for tensor in batch.values():
        tensor.zero_()
    assert np.array_equal(one.soft.logprobs, before)
