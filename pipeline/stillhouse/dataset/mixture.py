"""The mixture of several teachers' soft labels at the same positions: p(v) = w_1 p_1(v) + ... + w_n p_n(v).

    mix_top_k([labels_of_a, labels_of_b], [2 / 3, 1 / 3])
    mix_draws([draws_of_a, draws_of_b], [2 / 3, 1 / 3], seed=7)
    mix_logprobs([logprobs_of_a, logprobs_of_b], [2 / 3, 1 / 3])

**top-k.** A token that teacher i does not list has a probability between 0 and min(t_i, l_i), where t_i is the mass of its
tail and l_i the probability of its least likely listed token. The mixture takes it as 0, and the tail of the mixture takes
all of w_i t_i, so everything still sums to 1:

    p(v) = sum over the teachers that list v of w_i p_i(v),        tail = 1 - sum of what is listed

Each listed probability is a lower bound, and the tail an upper bound; the total variation distance from the exact mixture,
over the listed tokens and the tail, is at most

    sum over i of w_i min(t_i, m_i l_i),        m_i = number of listed tokens of the mixture that teacher i does not list

(`missing_mass`). The list has as many tokens as the longest of the given ones; the rest joins the tail.

**sampled.** D draws of the mixture consist of D w_i draws of each teacher, chosen at random among its own without
replacement; D is the largest number for which all have enough. Where D w_i is no integer it is rounded up or down at random
with the right mean, so count / draws remains an unbiased estimate of the mixture. With equal weights and equally many draws
all of them are kept.

**One token.** The log-probability of the written token is stored for every teacher, so its mixture is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stillhouse.records import SampledLabels, SoftLabels

Floats = npt.NDArray[np.float64]


def normalised(weights: Sequence[float]) -> Floats:
    """Return weights divided by their sum: (teachers,).

    Raises:
        ValueError: one of them is not positive and finite.
    """
    given = np.asarray(weights, dtype=np.float64)
    if not len(given) or not np.isfinite(given).all() or (given <= 0).any():
        raise ValueError("weights must be positive numbers")
    shares: Floats = given / given.sum()
    return shares


def mix_logprobs(logprobs: Sequence[npt.NDArray[np.floating]], weights: Sequence[float]) -> npt.NDArray[np.float32]:
    """Return log sum_i w_i exp(logprobs_i), elementwise; the weights sum to 1."""
    stacked = np.stack([one.astype(np.float64) for one in logprobs])  # (teachers, ...)
    shares = np.log(np.asarray(weights, dtype=np.float64)).reshape(-1, *(1,) * (stacked.ndim - 1))
    mixed: npt.NDArray[np.float32] = np.logaddexp.reduce(stacked + shares, axis=0).astype(np.float32)
    return mixed


def mix_top_k(labels: Sequence[SoftLabels], weights: Sequence[float]) -> SoftLabels:
    """Return the mixture of top-k labels at the same positions, see the module's docstring; the weights sum to 1.

    Raises:
        ValueError: the labels have different numbers of positions.
    """
    _check_lengths([len(one) for one in labels])
    k = max(one.k for one in labels)
    ids, mass = _union(labels, weights)
    order = np.argsort(-mass, axis=1, kind="stable")[:, :k]
    listed = np.take_along_axis(mass, order, axis=1)  # (time, k)
    tails = sum(
        weight * np.exp(one.tail_logprob.astype(np.float64)) for one, weight in zip(labels, weights, strict=True)
    )
    dropped = np.maximum(mass.sum(axis=1) - listed.sum(axis=1), 0) if mass.shape[1] > k else np.zeros(len(mass))
    with np.errstate(divide="ignore"):
        return SoftLabels(
            token_ids=np.take_along_axis(ids, order, axis=1).astype(np.int32),
            logprobs=np.log(listed).astype(np.float16),
            tail_logprob=np.log(tails + dropped).astype(np.float32),
        )


def missing_mass(labels: Sequence[SoftLabels], weights: Sequence[float], mixed: SoftLabels) -> Floats:
    """Return a bound on the total variation distance between `mixed` and the exact mixture at each position: (time,)."""
    bound = np.zeros(len(mixed))
    for one, weight in zip(labels, weights, strict=True):
        missing = [
            len(set(ours.tolist()) - set(theirs.tolist()))
            for ours, theirs in zip(mixed.token_ids, one.token_ids, strict=True)
        ]
        least = np.exp(one.logprobs.astype(np.float64).min(axis=1))
        bound += weight * np.minimum(np.exp(one.tail_logprob.astype(np.float64)), np.array(missing) * least)
    return bound


def mix_draws(labels: Sequence[SampledLabels], weights: Sequence[float], seed: int) -> SampledLabels:
    """Return the mixture of sampled labels at the same positions, see the module's docstring; the weights sum to 1.

    Raises:
        ValueError: the labels have different numbers of positions.
    """
    _check_lengths([len(one) for one in labels])
    shares = np.asarray(weights, dtype=np.float64)
    drawn = np.stack([one.draws for one in labels], axis=1)  # (time, teachers)
    rng = np.random.default_rng(seed)
    counts: list[dict[int, int]] = []
    for position, available in enumerate(drawn):
        total = mixture_draws(available, shares)
        taken = _split_at_random(total, shares, rng)
        found: dict[int, int] = {}
        for one, number in zip(labels, taken, strict=True):
            entries = slice(int(one.offsets[position]), int(one.offsets[position + 1]))
            kept = one.counts[entries].astype(np.int64)
            if number < kept.sum():
                kept = rng.multivariate_hypergeometric(kept, int(number), method="marginals")
            for token, count in zip(one.token_ids[entries].tolist(), kept.tolist(), strict=True):
                if count:
                    found[token] = found.get(token, 0) + count
        counts.append(found)
    return _sampled(counts)


def mixture_draws(available: npt.NDArray[np.integer], shares: Floats) -> int:
    """Return the largest number of draws of the mixture for which every teacher has its share, at most 65,535."""
    return min(int(np.floor(np.min(available / shares) + 1e-9)), int(np.iinfo(np.uint16).max))


def _split_at_random(total: int, shares: Floats, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a number of draws for each teacher with the mean total * share and the sum `total` (systematic sampling)."""
    wanted = total * shares
    close = np.rint(wanted)
    if np.allclose(wanted, close, atol=1e-9):
        return close.astype(np.int64)
    edges = np.concatenate([[0.0], np.cumsum(wanted)])
    edges[-1] = total
    split: npt.NDArray[np.int64] = np.diff(np.floor(edges + rng.random())).astype(np.int64)
    return split


def _sampled(counts: Sequence[dict[int, int]]) -> SampledLabels:
    """Return labels with these counts at each position, sorted by falling count and then by rising id."""
    ordered = [sorted(one.items(), key=lambda entry: (-entry[1], entry[0])) for one in counts]
    entries = [entry for one in ordered for entry in one]
    return SampledLabels(
        token_ids=np.array([token for token, _ in entries], dtype=np.int32),
        counts=np.array([count for _, count in entries], dtype=np.uint16),
        offsets=np.concatenate([[0], np.cumsum([len(one) for one in ordered], dtype=np.int64)]),
    )


def _union(labels: Sequence[SoftLabels], weights: Sequence[float]) -> tuple[npt.NDArray[np.int32], Floats]:
    """Return every listed token of each position once, padded, with its weighted mass; padding has the mass 0.

    The two have the shape (time, sum of the k).
    """
    ids = np.concatenate([one.token_ids for one in labels], axis=1)
    mass = np.concatenate(
        [weight * np.exp(one.logprobs.astype(np.float64)) for one, weight in zip(labels, weights, strict=True)], axis=1
    )
    order = np.argsort(ids, axis=1, kind="stable")
    ids, mass = np.take_along_axis(ids, order, axis=1), np.take_along_axis(mass, order, axis=1)
    for place in range(1, ids.shape[1]):  # add the mass of equal neighbours to the last one
        same = ids[:, place] == ids[:, place - 1]
        mass[same, place] += mass[same, place - 1]
        mass[same, place - 1] = 0.0
    repeated = np.zeros(ids.shape, dtype=bool)
    repeated[:, :-1] = ids[:, :-1] == ids[:, 1:]
    mass[repeated] = -1.0  # sorts behind every token, even one with the mass 0
    order = np.argsort(-mass, axis=1, kind="stable")
    ids, mass = np.take_along_axis(ids, order, axis=1), np.take_along_axis(mass, order, axis=1)
    width = max(int((mass >= 0).sum(axis=1).max(initial=0)), max(one.k for one in labels))
    return ids[:, :width], np.maximum(mass[:, :width], 0.0)


def _check_lengths(lengths: Sequence[int]) -> None:
    if len(set(lengths)) > 1:
        raise ValueError(f"the labels have different numbers of positions: {', '.join(map(str, lengths))}")
