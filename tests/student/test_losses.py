"""Every divergence, held against the dense formula in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pipeline.student.losses
from pipeline.config import StudentSettings
from pipeline.plugins import built_in_kinds, load_kind
from pipeline.student.losses.base import Divergence, SparseLabels, student_outcomes, teacher_outcomes
from pipeline.student.objective import Objective, open_objective

KINDS = sorted(built_in_kinds(pipeline.student.losses))
POSITIONS, VOCABULARY = 3, 11


def divergence_of(kind: str) -> Divergence:
    found: Divergence = load_kind("loss", kind, pipeline.student.losses, "divergence", "stillhouse.losses")
    return found


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return (
        torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    )


def labels_of(teacher: Tensor, k: int) -> SparseLabels:
    """The k most likely tokens and the tail, by plain arithmetic on probabilities."""
    probabilities = teacher.softmax(-1)
    values, ids = probabilities.sort(dim=-1, descending=True)
    return SparseLabels(ids[:, :k], values[:, :k].log(), values[:, k:].sum(-1).log())


def coarse(probabilities: Tensor, ids: Tensor) -> Tensor:
    """Probabilities over the listed tokens and all others, by a loop."""
    rows = []
    for row, listed in zip(probabilities, ids.tolist(), strict=True):
        rest = sum(
            (row[token] for token in range(len(row)) if token not in listed), start=torch.zeros((), dtype=row.dtype)
        )
        rows.append(torch.stack([*(row[token] for token in listed), rest]))
    return torch.stack(rows)


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    powered = probabilities ** (1 / temperature)
    return powered / powered.sum(-1, keepdim=True)


def brute_force_forward_kl(p: Tensor, q: Tensor) -> list[float]:
    return [
        sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(row_p, row_q, strict=True) if a > 0)
        for row_p, row_q in zip(p, q, strict=True)
    ]


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCABULARY), temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_forward_kl_is_the_sum_over_the_coarse_tempered_outcomes(seed: int, k: int, temperature: float) -> None:
    teacher, student = logits(seed), logits(seed + 1)
    labels = labels_of(teacher, k)
    p = tempered(coarse(teacher.softmax(-1), labels.token_ids), temperature)
    q = tempered(coarse(student.softmax(-1), labels.token_ids), temperature)
    measured = divergence_of("forward-kl")(
        teacher_outcomes(labels, temperature), student_outcomes(student, labels.token_ids, temperature)
    )
    assert measured.tolist() == pytest.approx(brute_force_forward_kl(p, q), abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sparse_equals_dense_when_every_token_is_listed(temperature: float) -> None:
    teacher, student = logits(1), logits(2)
    labels = labels_of(teacher, VOCABULARY)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    sparse = divergence_of("forward-kl")(
        teacher_outcomes(labels, temperature), student_outcomes(student, labels.token_ids, temperature)
    )
    assert sparse.tolist() == pytest.approx(brute_force_forward_kl(p, q), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCABULARY), temperature=st.sampled_from([1.0, 3.0]))
def test_zero_at_equality_and_never_negative(kind: str, seed: int, k: int, temperature: float) -> None:
    teacher, other = logits(seed), logits(seed + 1)
    labels = labels_of(teacher, k)
    p = teacher_outcomes(labels, temperature)
    same = divergence_of(kind)(p, student_outcomes(teacher, labels.token_ids, temperature))
    different = divergence_of(kind)(p, student_outcomes(other, labels.token_ids, temperature))
    assert same.abs().max() < 1e-9
    assert different.min() > -1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_positions_do_not_touch_each_other(kind: str) -> None:
    teacher, student = logits(5), logits(6)
    labels = labels_of(teacher, 4)
    p, q = teacher_outcomes(labels, 2.0), student_outcomes(student, labels.token_ids, 2.0)
    whole = divergence_of(kind)(p, q)
    piecewise = torch.cat([divergence_of(kind)(p[i : i + 1], q[i : i + 1]) for i in range(POSITIONS)])
    assert torch.equal(whole, piecewise)


@pytest.mark.parametrize("k", [1, 4, VOCABULARY])
def test_gradient_is_that_of_the_dense_formula(k: int) -> None:
    teacher, student = logits(7), logits(8).requires_grad_()
    labels = labels_of(teacher, k)
    loss = divergence_of("forward-kl")(
        teacher_outcomes(labels, 2.0), student_outcomes(student, labels.token_ids, 2.0)
    ).sum()
    (sparse,) = torch.autograd.grad(loss, student)
    again = student.detach().clone().requires_grad_()
    p = tempered(coarse(teacher.softmax(-1), labels.token_ids), 2.0)
    q = tempered(coarse(again.softmax(-1), labels.token_ids), 2.0)
    possible = p > 0
    (dense,) = torch.autograd.grad((p[possible] * (p[possible].log() - q[possible].log())).sum(), again)
    assert torch.allclose(sparse, dense, atol=1e-9)
    assert sparse.isfinite().all()


def test_a_tail_of_no_mass_is_finite_and_has_a_finite_gradient() -> None:
    labels = SparseLabels(torch.tensor([[2]]), torch.tensor([[0.0]]), torch.tensor([-torch.inf]))
    student = torch.zeros(1, 5, requires_grad=True)
    loss = divergence_of("forward-kl")(
        teacher_outcomes(labels, 1.0), student_outcomes(student, labels.token_ids, 1.0)
    ).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == pytest.approx(math.log(5))
    assert gradient.isfinite().all()


def test_the_objective_is_the_formula_of_its_docstring() -> None:
    teacher, student = logits(11), logits(12)
    labels, targets = labels_of(teacher, 5), torch.tensor([0, 3, 7])
    objective = Objective(divergence_of("forward-kl"), temperature=2.0, weight=0.7, cross_entropy_weight=0.3)
    p, q = (tempered(coarse(z.softmax(-1), labels.token_ids), 2.0) for z in (teacher, student))
    kl = sum(brute_force_forward_kl(p, q))
    cross_entropy = -sum(math.log(float(student.softmax(-1)[i, t])) for i, t in enumerate(targets.tolist()))
    assert float(objective(student, targets, labels)) == pytest.approx(0.7 * 4.0 * kl + 0.3 * cross_entropy, rel=1e-9)


def test_a_black_box_student_learns_by_cross_entropy_alone() -> None:
    settings_ = StudentSettings.model_validate(
        {"init": {"model": "x"}, "mode": "black-box", "loss": {"weight": 5.0, "cross_entropy_weight": 0.1}}
    )
    student, targets = logits(12), torch.tensor([0, 3, 7])
    loss = open_objective(settings_)(student, targets, None)
    assert float(loss) == pytest.approx(float(torch.nn.functional.cross_entropy(student, targets, reduction="sum")))


def test_a_white_box_objective_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="needs soft labels"):
        Objective(divergence_of("forward-kl"), 1.0, 1.0, 1.0)(logits(1), torch.tensor([0, 1, 2]), None)
