"""Sampled labels give the full distribution's gradient on the mean; top-k renormalised to 1 does not (arXiv 2503.16870).

The forward KL's gradient by the student's logits is q - p. With labels in the place of p it is q - p_hat.
"""

import numpy as np
import numpy.typing as npt
import pytest

from stillhouse.dataset.encodings import find_encoding
from stillhouse.records import SampledLabels
from tests.dataset.encodings.test_round_trip import batch_of

pytestmark = pytest.mark.numeric

Vector = npt.NDArray[np.float64]
VOCABULARY, DRAWS = 3000, 50


def zipf(seed: int, power: float) -> Vector:
    """Probabilities with a long tail, in random order."""
    generator = np.random.default_rng(seed)
    weights = 1.0 / (np.arange(VOCABULARY) + 2.0) ** power
    generator.shuffle(weights)
    return weights / weights.sum()


def angle(one: Vector, other: Vector) -> float:
    """Degrees between two gradients."""
    cosine = one @ other / np.sqrt((one @ one) * (other @ other))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def mean_estimate(p: Vector, positions: int, seed: int) -> Vector:
    """The mean p_hat of many positions that have the same p, by way of the encoding: (vocabulary,)."""
    places = np.random.default_rng(seed).random((positions, DRAWS))
    labels = SampledLabels.from_draws(np.searchsorted(p.cumsum(), places * p.sum(), side="right"))
    packed = find_encoding("sampled").decode(batch_of("sampled", [labels]))
    shares = np.exp(packed.logprobs.astype(np.float64))
    return np.bincount(packed.token_ids, weights=shares, minlength=VOCABULARY) / positions


def renormalised(p: Vector, k: int) -> Vector:
    """The k most likely tokens, made to sum to 1."""
    kept = np.where(p >= np.sort(p)[-k], p, 0.0)
    return kept / kept.sum()


@pytest.mark.parametrize("power", [0.9, 1.2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mean_gradient_of_sampled_labels_is_the_full_one(seed: int, power: float) -> None:
    p, q = zipf(seed, power), zipf(seed + 100, 1.0)
    full = q - p
    few, many = (q - mean_estimate(p, positions, seed) for positions in (100, 10_000))
    assert angle(many, full) < 2.5
    assert angle(many, full) < angle(few, full) / 5  # it vanishes like one over the root of the positions: a tenth here
    for k in (12, 50):
        assert angle(q - renormalised(p, k), full) > 10  # and this never does: it is the same at every position


@pytest.mark.parametrize("seed", [0, 1])
def test_every_estimate_is_within_its_standard_error(seed: int) -> None:
    """No token's mean is further from its probability than five standard errors, the rarest tokens' included."""
    p = zipf(seed, 1.0)
    positions = 8000
    mean = mean_estimate(p, positions, seed + 50)
    error = np.sqrt(p * (1 - p) / (DRAWS * positions))
    assert np.abs((mean - p) / error).max() < 5.5
    tail = p < np.sort(p)[-50]
    spread = np.sqrt(p[tail].sum() * (1 - p[tail].sum()) / (DRAWS * positions))
    assert abs(mean[tail].sum() - p[tail].sum()) < 4 * spread  # what renormalised top-k calls 0
