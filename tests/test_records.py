"""Records survive the way through Arrow, and ids name content."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.dataset.columns import (
    completion_at,
    completion_row,
    completion_schema,
    record_batch,
    rejection_row,
    rejection_schema,
)
from stillhouse.dataset.encodings.top_k import round_logprobs
from stillhouse.records import Completion, Message, Prompt, Rejection, SoftLabels, TokenTrace, content_hash


def completion(time: int = 3, k: int = 2, text: str = "An answer.") -> Completion:
    generator = np.random.default_rng(time * 10 + k)
    soft = SoftLabels(
        generator.integers(0, 50_000, (time, k)).astype(np.int32),
        round_logprobs(-generator.random((time, k))).astype(np.float16),
        round_logprobs(-generator.random(time)),
    )
    trace = TokenTrace(
        np.arange(5, dtype=np.int32), np.arange(time, dtype=np.int32), -generator.random(time).astype(np.float32), soft
    )
    prompt = Prompt((Message("system", "Be brief."), Message("user", "Why? €")), "Because.")
    return Completion("k1", prompt, 1, text, "stop", 5, time, "t", "2026-01-01T00:00:00+00:00", 0.25, trace)


@given(time=st.integers(1, 6), k=st.integers(1, 5), text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_completion_comes_back_as_it_was(time: int, k: int, text: str) -> None:
    before = completion(time, k, text)
    after = completion_at(record_batch([completion_row(before, soft="top-k")], completion_schema(soft="top-k")), 0)
    assert (after.id, after.prompt, after.sample, after.text) == (before.id, before.prompt, before.sample, text)
    assert (after.finish_reason, after.cost_usd, after.created_at) == ("stop", 0.25, before.created_at)
    assert before.trace is not None and after.trace is not None
    assert before.trace.soft is not None and after.trace.soft is not None
    for name in ("prompt_token_ids", "completion_token_ids", "completion_logprobs"):
        np.testing.assert_array_equal(getattr(after.trace, name), getattr(before.trace, name))
    for name in ("token_ids", "logprobs", "tail_logprob"):
        mine, theirs = getattr(after.trace.soft, name), getattr(before.trace.soft, name)
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype


def test_text_alone_has_no_trace() -> None:
    batch = record_batch([completion_row(completion(), soft=None)], completion_schema(soft=None))
    assert "top_token_ids" not in batch.schema.names
    assert completion_at(batch, 0).trace is None


def test_a_rejection_keeps_what_was_paid_for() -> None:
    paid = completion()
    rejection = Rejection(paid.id, paid.prompt, 1, "quality", "length", "too long", completion=paid)
    batch = record_batch([rejection_row(rejection, soft="top-k")], rejection_schema(soft="top-k"))
    assert completion_at(batch, 0).text == paid.text
    assert batch.column("reason")[0].as_py() == "length"


def test_a_rejection_without_an_answer_has_nulls() -> None:
    rejection = Rejection("k", completion().prompt, 0, "teacher", "too-long", "9 tokens", attempts=2)
    row = record_batch([rejection_row(rejection, soft="top-k")], rejection_schema(soft="top-k")).to_pylist()[0]
    assert row["completion"] is None
    assert (row["prompt_id"], row["attempts"]) == (completion().prompt.id, 2)


def test_ids_name_the_conversation_and_not_its_reference() -> None:
    one = Prompt((Message("user", "a"),), "x")
    assert one.id == Prompt((Message("user", "a"),), "y").id
    assert one.id != Prompt((Message("system", "s"), Message("user", "a")), "x").id


def test_a_setting_added_later_as_none_renames_nothing() -> None:
    assert content_hash({"a": 1}) == content_hash({"a": 1, "b": None})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


def test_hashes_do_not_change_between_releases() -> None:
    assert content_hash({"b": [1, "é"], "a": 0.5}) == "de1d6bbe921a0af6006f2d732747ad8c"


def test_what_is_not_json_has_no_hash() -> None:
    with pytest.raises(TypeError):
        content_hash({"a": {1, 2}})
