"""Sampled and ragged labels: forward KL against the dense formula with count / draws in the place of the teacher."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.student.losses.base import PAD_TOKEN_ID, SparseLabels, student_outcomes, teacher_outcomes
from stillhouse.student.losses.forward_kl import divergence

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]

POSITIONS, VOCABULARY = 3, 11
seeds, draws_of = st.integers(0, 10_000), st.integers(1, 60)


def logits(seed: int) -> Tensor:
    return torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def drawn(seed: int, draws: int) -> tuple[SparseLabels, Tensor]:
    """Labels as a batch has them, padded behind each position's last token, and p_hat over the whole vocabulary."""
    random = torch.Generator().manual_seed(seed)
    tokens = logits(seed).softmax(-1).multinomial(draws, replacement=True, generator=random)
    estimate = torch.stack([torch.bincount(row, minlength=VOCABULARY) for row in tokens]).double() / draws
    width = int((estimate > 0).sum(-1).max())
    ids = torch.full((POSITIONS, width), PAD_TOKEN_ID)
    logprobs = torch.full((POSITIONS, width), -torch.inf, dtype=torch.float64)
    for row, one in enumerate(estimate):
        (listed,) = one.nonzero(as_tuple=True)
        ids[row, : len(listed)], logprobs[row, : len(listed)] = listed, one[listed].log()
    return SparseLabels(ids, logprobs, torch.full((POSITIONS,), -torch.inf, dtype=torch.float64)), estimate


def top_k(seed: int, k: int) -> SparseLabels:
    values, ids = logits(seed).softmax(-1).sort(dim=-1, descending=True)
    return SparseLabels(ids[:, :k], values[:, :k].log(), values[:, k:].sum(-1).log())


def wider(labels: SparseLabels, places: int) -> SparseLabels:
    """The same labels in a batch where another position has so many more entries."""
    nothing = torch.full((POSITIONS, places), PAD_TOKEN_ID)
    return SparseLabels(
        torch.cat([labels.token_ids, nothing], dim=-1),
        torch.cat([labels.logprobs, torch.full(nothing.shape, -torch.inf, dtype=torch.float64)], dim=-1),
        labels.tail_logprob,
    )


def value_and_gradient(labels: SparseLabels, student: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    measured = divergence(teacher_outcomes(labels, temperature), student_outcomes(leaf, labels.token_ids, temperature))
    (gradient,) = torch.autograd.grad(measured.sum(), leaf)
    return measured.detach(), gradient


@settings(max_examples=60)
@given(seed=seeds, draws=draws_of)
def test_value_and_gradient_are_the_dense_ones_with_the_estimate_for_a_target(seed: int, draws: int) -> None:
    labels, estimate = drawn(seed, draws)
    student = logits(seed + 1)
    measured, gradient = value_and_gradient(labels, student)
    brute_force = [
        sum(float(p) * math.log(float(p) / float(q)) for p, q in zip(row_p, row_q, strict=True) if p > 0)
        for row_p, row_q in zip(estimate, student.softmax(-1), strict=True)
    ]
    assert measured.tolist() == pytest.approx(brute_force, abs=1e-9)
    leaf = student.clone().requires_grad_()
    dense_loss = torch.nn.functional.cross_entropy(leaf, estimate, reduction="sum")
    (dense,) = torch.autograd.grad(dense_loss, leaf)
    assert torch.allclose(gradient, dense, atol=1e-9)
    assert torch.allclose(gradient, student.softmax(-1) - estimate, atol=1e-9)


def test_the_gradient_is_right_on_average() -> None:
    """Over 1,500 drawings the mean gradient is that of the full distribution, within five standard errors."""
    student, rounds, draws = logits(2), 1500, 5
    teacher = logits(1).softmax(-1)
    random = torch.Generator().manual_seed(0)
    tokens = teacher.multinomial(rounds * draws, replacement=True, generator=random).reshape(POSITIONS, rounds, draws)
    total = torch.zeros_like(student)
    for number in range(rounds):
        ids, counts = tokens[:, number].sort(dim=-1).values, torch.zeros(POSITIONS, draws, dtype=torch.float64)
        first = torch.cat([torch.ones(POSITIONS, 1, dtype=torch.bool), ids[:, 1:] != ids[:, :-1]], dim=-1)
        counts.scatter_add_(-1, first.cumsum(-1) - 1, torch.ones_like(counts))
        unique = torch.full_like(ids, PAD_TOKEN_ID)
        for row in range(POSITIONS):
            listed = ids[row][first[row]]
            unique[row, : len(listed)] = listed
        labels = SparseLabels(unique, (counts / draws).log(), torch.full((POSITIONS,), -torch.inf).double())
        total += value_and_gradient(labels, student)[1]
    error = (teacher * (1 - teacher) / (rounds * draws)).sqrt()
    assert ((total / rounds - (student.softmax(-1) - teacher)).abs() < 5 * error + 1e-9).all()


@settings(max_examples=60)
@given(
    seed=seeds,
    draws=draws_of,
    places=st.integers(1, VOCABULARY + 2),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_padding_changes_nothing(seed: int, draws: int, places: int, temperature: float) -> None:
    for labels in (drawn(seed, draws)[0], top_k(seed, 4), top_k(seed, VOCABULARY)):
        measured, gradient = value_and_gradient(labels, logits(seed + 1), temperature)
        again, its_gradient = value_and_gradient(wider(labels, places), logits(seed + 1), temperature)
        assert torch.allclose(measured, again, atol=1e-12)
        assert torch.allclose(gradient, its_gradient, atol=1e-12)
        assert gradient.isfinite().all()
        assert measured.min() > -1e-12


@settings(max_examples=40)
@given(seed=seeds, draws=draws_of, places=st.integers(0, 3))
def test_the_outcomes_are_a_distribution(seed: int, draws: int, places: int) -> None:
    labels = wider(drawn(seed, draws)[0], places)
    student = student_outcomes(logits(seed + 1), labels.token_ids, 1.0).exp()
    for outcomes, ids, probabilities in zip(student, labels.token_ids, logits(seed + 1).softmax(-1), strict=True):
        assert float(outcomes.sum()) == pytest.approx(1)
        assert (outcomes[:-1][ids == PAD_TOKEN_ID] == 0).all()
        listed = ids[ids != PAD_TOKEN_ID]
        assert torch.allclose(outcomes[:-1][ids != PAD_TOKEN_ID], probabilities[listed])
        assert float(outcomes[-1]) == pytest.approx(1 - float(probabilities[listed].sum()), abs=1e-9)
    assert torch.allclose(teacher_outcomes(labels, 1.0).exp().sum(-1), torch.ones(POSITIONS, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_zero_where_the_student_has_the_estimate(temperature: float) -> None:
    labels, estimate = drawn(3, 40)
    measured, gradient = value_and_gradient(labels, estimate.clamp(min=1e-30).log(), temperature)
    assert measured.abs().max() < 1e-9
    assert gradient.isfinite().all()


@pytest.mark.parametrize("unlisted", [-1e4, -torch.inf])
def test_a_student_that_can_say_nothing_else_has_a_finite_gradient(unlisted: float) -> None:
    labels, _ = drawn(3, 40)
    student = torch.full((POSITIONS, VOCABULARY), unlisted, dtype=torch.float64)
    for row, ids in enumerate(labels.token_ids):
        student[row, ids[ids != PAD_TOKEN_ID]] = 0.0
    measured, gradient = value_and_gradient(labels, student)
    assert measured.isfinite().all()
    assert gradient.isfinite().all()


def test_a_position_with_every_token_beside_one_with_few() -> None:
    """Nothing is left over at the first, and its gradient is finite."""
    whole, few = top_k(4, VOCABULARY), wider(top_k(4, 2), VOCABULARY - 2)
    both = SparseLabels(
        torch.cat([whole.token_ids[:1], few.token_ids[1:]]),
        torch.cat([whole.logprobs[:1], few.logprobs[1:]]),
        torch.cat([whole.tail_logprob[:1], few.tail_logprob[1:]]),
    )
    measured, gradient = value_and_gradient(both, logits(5))
    apart = [value_and_gradient(one, logits(5)) for one in (whole, few)]
    assert torch.allclose(measured, torch.cat([apart[0][0][:1], apart[1][0][1:]]))
    assert torch.allclose(gradient, torch.cat([apart[0][1][:1], apart[1][1][1:]]))
    assert gradient.isfinite().all()
