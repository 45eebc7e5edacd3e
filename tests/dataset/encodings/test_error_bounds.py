"""The error bounds that the encodings' docstrings state."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.encodings.top_k import COARSEST, FINEST, error_bound, round_logprobs
from stillhouse.records import SampledLabels, SoftLabels
from tests.dataset.encodings.made import SEEDS, top_k_labels
from tests.dataset.encodings.test_round_trip import batch_of

pytestmark = pytest.mark.numeric


def half_step(value: float) -> float:
    """By the table of the docstring."""
    borders = [1.375, 2.75, 4.125, 5.5]
    return FINEST / 2 * 2 ** sum(-value >= border for border in borders)


@given(st.floats(-128, 0, width=16))
def test_a_logprob_is_off_by_half_a_step_at_most(value: float) -> None:
    error = abs(float(round_logprobs(np.array([value]))[0]) - value)
    assert error <= half_step(value) <= COARSEST / 2 == 1 / 16
    assert math.exp(value) * error**2 <= 1.05 * 2.0**-16  # what one outcome adds to the divergence


@given(st.lists(st.floats(-30, 0, width=16), min_size=2, max_size=20))
def test_rounding_keeps_the_order(values: list[float]) -> None:
    ordered = round_logprobs(np.sort(np.array(values))[::-1])
    assert (np.diff(ordered) <= 0).all()


@given(st.floats(-65504, 0, width=16))
def test_what_is_rounded_is_a_float16_and_stays_what_it_is(value: float) -> None:
    once = round_logprobs(np.array([value], np.float16))
    assert once.astype(np.float16).astype(np.float32).tolist() == once.tolist() == round_logprobs(once).tolist()


def test_certain_and_impossible_tokens_stay_what_they_are() -> None:
    assert round_logprobs(np.array([0.0, -math.inf])).tolist() == [0.0, -math.inf]


@settings(max_examples=100)
@given(seed=SEEDS, time=st.integers(1, 4), k=st.one_of(st.integers(1, 60), st.just(1000)))
def test_the_kl_is_within_its_bound(seed: int, time: int, k: int) -> None:
    labels = top_k_labels(np.random.default_rng(seed), time, k)
    packed = find_encoding("top-k").decode(batch_of("top-k", [labels]))
    given = np.concatenate([labels.logprobs.astype(np.float64), labels.tail_logprob[:, None]], axis=1)
    given -= np.logaddexp.reduce(given, axis=1, keepdims=True)
    stored = np.concatenate([packed.logprobs.reshape(time, k), packed.tail_logprob[:, None]], axis=1).astype(np.float64)
    stored -= np.logaddexp.reduce(stored, axis=1, keepdims=True)
    kl = (np.exp(given) * np.where(given > -np.inf, given - stored, 0)).sum(axis=1)
    assert kl.min() > -1e-12
    assert kl.max() <= error_bound(k) + 1e-12


def test_a_token_of_little_mass_does_not_break_the_bound() -> None:
    labels = SoftLabels(
        np.array([[1, 2, 3]], np.int32), np.array([[0, -60, -np.inf]], np.float16), np.array([-50], np.float32)
    )
    packed = find_encoding("top-k").decode(batch_of("top-k", [labels]))
    assert packed.logprobs.tolist() == [0.0, -60.0, -math.inf] and packed.tail_logprob.tolist() == [-50.0]


@pytest.mark.parametrize("count", [1, 7, 50, 65_535])
def test_sampled_shares_sum_to_one_and_lie_where_the_docstring_says(count: int) -> None:
    generator = np.random.default_rng(count)
    p = generator.dirichlet(np.full(40, 0.3))
    cumulated = p.cumsum()
    errors = []
    for _ in range(100 if count < 1000 else 3):
        places = np.searchsorted(cumulated, generator.random((1, count)) * cumulated[-1], side="right")
        packed = find_encoding("sampled").decode(batch_of("sampled", [SampledLabels.from_draws(places)]))
        shares = np.exp(packed.logprobs.astype(np.float64))
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        dense = np.zeros(len(p))
        dense[packed.token_ids] = shares
        errors.append(np.abs(dense - p).sum() / 2)
    assert np.mean(errors) <= np.sqrt(p * (1 - p) / count).sum() / 2 + 1e-6  # total variation, as the docstring has it
