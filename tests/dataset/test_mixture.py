"""The mixture of several teachers' labels against dense distributions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.dataset.mixture import (
    missing_mass,
    mix_draws,
    mix_logprobs,
    mix_top_k,
    mixture_draws,
    normalised,
)
from stillhouse.records import SampledLabels, SoftLabels

VOCABULARY = 12


def dense(seed: int, teachers: int, time: int) -> Any:
    """Random distributions: (teachers, time, vocabulary)."""
    logits = np.random.default_rng(seed).normal(scale=2.5, size=(teachers, time, VOCABULARY))
    mass = np.exp(logits)
    return mass / mass.sum(axis=-1, keepdims=True)


def top_k(p: Any, k: int) -> SoftLabels:
    order = np.argsort(-p, axis=1)[:, :k]
    listed = np.take_along_axis(p, order, axis=1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1 - listed.sum(axis=1), 0)).astype(np.float32)
    return SoftLabels(order.astype(np.int32), np.log(listed).astype(np.float16), tail)


def outcomes(labels: SoftLabels, time: int) -> dict[int, float]:
    return dict(zip(labels.token_ids[time].tolist(), np.exp(labels.logprobs[time].astype(float)).tolist(), strict=True))


weighted = st.lists(st.floats(0.1, 5), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(weighted, st.integers(0, 1000), st.lists(st.integers(1, VOCABULARY), min_size=4, max_size=4))
def test_joined_lists_are_bounds_of_the_exact_mixture(given_weights: list[float], seed: int, sizes: list[int]) -> None:
    weights = normalised(given_weights)
    p = dense(seed, len(weights), 3)
    labels = [top_k(one, k) for one, k in zip(p, sizes, strict=False)]
    mixed = mix_top_k(labels, weights.tolist())
    exact = np.einsum("i,itv->tv", weights, p)
    assert mixed.k == max(one.k for one in labels)
    bounds = missing_mass(labels, weights.tolist(), mixed)
    for time in range(3):
        found = outcomes(mixed, time)
        assert len(found) == mixed.k
        total = sum(found.values()) + np.exp(float(mixed.tail_logprob[time]))
        assert total == pytest.approx(1, abs=0.01)  # each is rounded to float16
        gaps = {token: exact[time, token] - mass for token, mass in found.items()}
        assert all(gap >= -0.004 for gap in gaps.values())  # lower bounds, but for rounding
        exact_tail = 1 - sum(exact[time, token] for token in found)
        distance = (sum(map(abs, gaps.values())) + abs(exact_tail - np.exp(float(mixed.tail_logprob[time])))) / 2
        assert distance <= bounds[time] + 0.01
        assert mixed.logprobs[time].tolist() == sorted(mixed.logprobs[time].tolist(), reverse=True)


@settings(max_examples=40, deadline=None)
@given(weighted, st.integers(0, 1000))
def test_with_whole_lists_the_mixture_is_exact(given_weights: list[float], seed: int) -> None:
    weights = normalised(given_weights)
    p = dense(seed, len(weights), 2)
    mixed = mix_top_k([top_k(one, VOCABULARY) for one in p], weights.tolist())
    exact = np.einsum("i,itv->tv", weights, p)
    for time in range(2):
        for token, mass in outcomes(mixed, time).items():
            assert mass == pytest.approx(exact[time, token], rel=0.02, abs=1e-6)
    assert (missing_mass([top_k(one, VOCABULARY) for one in p], weights.tolist(), mixed) < 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(weighted, st.integers(0, 1000))
def test_log_probabilities_of_written_tokens_are_exact(given_weights: list[float], seed: int) -> None:
    weights = normalised(given_weights)
    p = dense(seed, len(weights), 5)[:, :, 3]
    mixed = mix_logprobs(list(np.log(p)), weights.tolist())
    np.testing.assert_allclose(np.exp(mixed), weights @ p, rtol=1e-5)


def draws(seed: int, p: Any, number: int) -> SampledLabels:
    rng = np.random.default_rng(seed)
    return SampledLabels.from_draws(np.stack([rng.choice(VOCABULARY, size=number, p=one) for one in p]))


def counts_at(labels: SampledLabels, time: int) -> Any:
    entries = slice(int(labels.offsets[time]), int(labels.offsets[time + 1]))
    found = np.zeros(VOCABULARY)
    found[labels.token_ids[entries]] = labels.counts[entries]
    return found


@pytest.mark.parametrize("teachers", [2, 3])
def test_with_equal_weights_all_draws_are_pooled(teachers: int) -> None:
    p = dense(1, teachers, 4)
    labels = [draws(place, one, 50) for place, one in enumerate(p)]
    mixed = mix_draws(labels, [1 / teachers] * teachers, seed=0)
    assert mixed.draws.tolist() == [50 * teachers] * 4
    for time in range(4):
        assert (counts_at(mixed, time) == sum(counts_at(one, time) for one in labels)).all()


@pytest.mark.parametrize(
    ("weights", "total"), [([2 / 3, 1 / 3], 75), ([0.75, 0.25], 66), ([0.5, 0.3, 0.2], 100), ([0.97, 0.03], 51)]
)
def test_unequal_weights_give_an_unbiased_estimate(weights: list[float], total: int) -> None:
    p = dense(2, len(weights), 1)
    labels = [draws(place, one, 50) for place, one in enumerate(p)]
    assert mixture_draws(np.array([50] * len(weights)), np.array(weights)) == total
    found = np.zeros(VOCABULARY)
    for seed in range(1500):
        mixed = mix_draws(labels, weights, seed)
        assert mixed.draws.tolist() == [total]
        found += counts_at(mixed, 0) / total
    wanted = sum(weight * counts_at(one, 0) / 50 for weight, one in zip(weights, labels, strict=True))
    np.testing.assert_allclose(found / 1500, wanted, atol=0.004)


def test_the_same_seed_gives_the_same_draws() -> None:
    labels = [draws(place, one, 30) for place, one in enumerate(dense(3, 2, 3))]
    one, other = (mix_draws(labels, [0.8, 0.2], seed=5) for _ in range(2))
    assert (one.token_ids == other.token_ids).all() and (one.counts == other.counts).all()


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -2], [1, float("nan")], [float("inf"), 1]])
def test_weights_are_positive_numbers(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        normalised(weights)


def test_labels_of_other_completions_are_refused() -> None:
    with pytest.raises(ValueError, match="3, 4"):
        mix_top_k([top_k(dense(1, 1, time)[0], 4) for time in (3, 4)], [0.5, 0.5])
