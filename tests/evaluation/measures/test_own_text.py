"""The distance from stored labels, position by position, against sums over the whole vocabulary."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluation.measures.own_text import position_sums
from stillhouse.student.losses.base import SparseLabels

pytestmark = pytest.mark.numeric
VOCABULARY = 6


def labels_of(teacher: torch.Tensor, k: int) -> SparseLabels:
    """The k most likely tokens of (positions, vocabulary) probabilities."""
    listed = teacher.topk(k, dim=-1)
    tail = (1 - listed.values.sum(-1)).clamp(min=0).log() if k < VOCABULARY else torch.full((len(teacher),), -math.inf)
    return SparseLabels(listed.indices, listed.values.log(), tail)


@given(st.integers(0, 10_000), st.integers(1, VOCABULARY))
def test_each_figure_is_that_of_a_loop(seed: int, k: int) -> None:
    random = torch.Generator().manual_seed(seed)
    teacher = torch.randn(3, VOCABULARY, generator=random, dtype=torch.float64).softmax(-1)
    logits = torch.randn(3, VOCABULARY, generator=random, dtype=torch.float64)
    student = logits.softmax(-1)
    found = position_sums(logits, labels_of(teacher, k)).tolist()
    expected = [0.0] * 6
    for p, q in zip(teacher.tolist(), student.tolist(), strict=True):
        listed = sorted(range(VOCABULARY), key=lambda token: -p[token])[:k]
        likely = sorted(range(VOCABULARY), key=lambda token: -q[token])[:k]
        ps, qs = ([side[token] for token in listed] for side in (p, q))
        if k < VOCABULARY:
            ps, qs = [*ps, 1 - sum(ps)], [*qs, 1 - sum(qs)]
        both = set(listed) & set(likely)
        figures = [
            sum(a * math.log(a / b) for a, b in zip(ps, qs, strict=True)),
            sum(b * math.log(b / a) for a, b in zip(ps, qs, strict=True)),
            -sum(b * math.log(b) for b in q),
            len(both) / k,
            sum(p[token] for token in both),
            sum(q[token] for token in both),
        ]
        expected = [total + figure for total, figure in zip(expected, figures, strict=True)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_equal_distributions_are_at_distance_0_and_overlap_wholly() -> None:
    logits = torch.randn(4, VOCABULARY, dtype=torch.float64)
    forward, reverse, _, overlap, teacher, student = position_sums(logits, labels_of(logits.softmax(-1), 3)).tolist()
    assert (forward, reverse, overlap) == pytest.approx((0, 0, 4), abs=1e-9)
    assert teacher == pytest.approx(student)
