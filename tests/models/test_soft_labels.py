"""Soft labels against brute force on the full distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.models.sampling import sample_tokens
from stillhouse.models.soft_labels import chosen_logprobs, sampled, top_k
from stillhouse.records import SoftLabels

pytestmark = pytest.mark.numeric


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), vocabulary=st.integers(2, 40), k=st.integers(1, 40))
def test_top_k_and_tail_are_those_of_the_softmax(seed: int, vocabulary: int, k: int) -> None:
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    labels = top_k(logits, k)
    probabilities = logits.double().softmax(-1)
    width = min(k, vocabulary)
    for row in range(4):
        expected = sorted(range(vocabulary), key=lambda token: -float(probabilities[row, token]))[:width]
        assert labels.token_ids[row].tolist() == expected
        assert labels.logprobs[row].tolist() == pytest.approx(
            [math.log(probabilities[row, token]) for token in expected], abs=1e-12
        )
        rest = sum(float(probabilities[row, token]) for token in range(vocabulary) if token not in expected)
        assert math.exp(labels.tail_logprob[row]) == pytest.approx(rest, abs=1e-12)


def test_the_tail_is_right_where_one_minus_the_sum_would_not_be() -> None:
    logits = torch.tensor([[0.0, -40.0, -41.0]])
    assert float(top_k(logits, 1).tail_logprob) == pytest.approx(math.log(math.exp(-40) + math.exp(-41)), rel=1e-5)


def test_everything_listed_leaves_no_tail() -> None:
    labels = top_k(torch.randn(2, 5), 9).soft_labels()
    assert labels.k == 5
    assert np.isneginf(labels.tail_logprob).all()


def test_chosen_logprobs_are_the_log_softmax() -> None:
    logits, tokens = torch.randn(3, 7, dtype=torch.float64), torch.tensor([6, 0, 2])
    expected = logits.log_softmax(-1)[torch.arange(3), tokens]
    assert torch.allclose(chosen_logprobs(logits, tokens), expected, atol=1e-12)


def test_soft_labels_of_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes of soft labels differ"):
        SoftLabels(np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float16), np.zeros(3, np.float32))


def test_draws_stand_where_the_cumulated_distribution_passes_them() -> None:
    logits = torch.tensor([[0.0, -torch.inf, math.log(3.0), -torch.inf]])  # 1/4 and 3/4
    uniform = torch.tensor([[0.0, 0.2, 0.2499, 0.2501, 0.9, 1 - 2**-53]], dtype=torch.float64)
    assert sample_tokens(logits, uniform).tolist() == [[0, 0, 0, 2, 2, 2]]


def test_draws_reach_a_vocabulary_of_a_million_and_padding_that_no_token_has() -> None:
    """Nothing is cut to 16 bits; rows beyond the tokenizer's last token are -inf, and never drawn."""
    logits = torch.full((1, 2**20), -torch.inf)
    logits[0, [2**16 + 3, 2**20 - 2]] = 0.0
    labels = sampled(logits, 200, seed=1)
    assert sorted(labels.token_ids.tolist()) == [2**16 + 3, 2**20 - 2]
    assert labels.counts.sum() == 200 and abs(int(labels.counts[0]) - 100) < 40


def test_more_positions_than_are_drawn_at_once() -> None:
    logits = torch.randn(150, 9, generator=torch.Generator().manual_seed(0))
    together, first = sampled(logits, 30, seed=5), sampled(logits[:70], 30, seed=5)
    assert len(together) == 150
    assert first.token_ids.tolist() == together.token_ids[: together.offsets[70]].tolist()
    assert sampled(logits, 30, seed=6).counts.tolist() != together.counts.tolist()
