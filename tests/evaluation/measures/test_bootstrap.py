"""Figures and their intervals."""

import tracemalloc

import numpy as np
import pytest

from stillhouse.evaluation.measures import bootstrap
from stillhouse.evaluation.measures.bootstrap import mean_per_prompt, ratio_of_sums, resampled_totals

pytestmark = pytest.mark.numeric


def test_the_mean_is_over_tokens_not_over_prompts() -> None:
    interval = ratio_of_sums([10.0, 1.0], [10, 4])
    assert interval.mean == pytest.approx(11 / 14)
    assert interval.low == pytest.approx(0.25)
    assert interval.high == pytest.approx(1.0)


def test_resamples_without_a_token_are_left_out() -> None:
    """Of three prompts one alone has tokens: many a resample has none of it, and no quotient."""
    interval = ratio_of_sums([6.0, 0.0, 0.0], [3, 0, 0])
    assert (interval.mean, interval.low, interval.high) == (2.0, 2.0, 2.0)


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    interval, plain = ratio_of_sums([2.0, 4.0], [2, 2], np.exp), ratio_of_sums([2.0, 4.0], [2, 2])
    assert interval.mean == pytest.approx(np.exp(1.5))
    assert (interval.low, interval.high) == pytest.approx((np.exp(plain.low), np.exp(plain.high)))


def test_the_interval_holds_the_middle_95_percent_of_the_resampled_means() -> None:
    """The rows drawn one after another by plain indexing, and the 51st value from either end of 2,001 ranks."""
    values = np.random.default_rng(4).exponential(2.0, 80)
    drawn = np.random.default_rng(0).integers(0, 80, size=(2000, 80))
    means = sorted(float(np.mean(values[row])) for row in drawn)
    interval = mean_per_prompt(values.tolist())
    assert means[49] <= interval.low <= means[50]
    assert means[1949] <= interval.high <= means[1950]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        interval = mean_per_prompt(list(generator.normal(3.0, 1.0, size=60)))
        covered += interval.low <= 3.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_is_the_same_each_time() -> None:
    assert ratio_of_sums([1.0, 2.0, 5.0], [1, 1, 2]) == ratio_of_sums([1.0, 2.0, 5.0], [1, 1, 2])


@pytest.mark.parametrize("at_once", [1, 100, 10**9])
def test_totals_are_those_of_rows_drawn_one_after_another(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", at_once)
    statistics = np.random.default_rng(2).integers(0, 9, size=(40, 3)).astype(np.float64)
    drawn = np.random.default_rng(0).integers(0, 40, size=(2000, 40))
    assert np.array_equal(resampled_totals(statistics), statistics[drawn].sum(axis=1))


def test_many_rows_and_columns_take_little_memory() -> None:
    statistics = np.ones((6000, 90))
    tracemalloc.start()
    totals = resampled_totals(statistics)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert totals.shape == (2000, 90)
    assert (totals == 6000).all()
    assert peak < 100e6
