"""Every divergence that is found, held against its formula on plain probabilities in float64."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stillhouse.student.losses
from stillhouse.plugins import built_in_kinds
from stillhouse.recipe.student import LossSettings
from stillhouse.student.losses.base import PAD_TOKEN_ID, Divergence, SparseLabels, student_outcomes, teacher_outcomes
from stillhouse.student.losses.reverse_kl import FLOOR
from stillhouse.student.training.objective import load_divergence

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]

KINDS = sorted(built_in_kinds(stillhouse.student.losses))
POSITIONS, VOCABULARY = 3, 11
seeds = st.integers(0, 10_000)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 4.0])
shares = st.sampled_from([0.01, 0.1, 0.5, 0.8, 0.99])


@functools.cache  # entry points are looked for anew each time
def divergence_of(kind: str, **options: float) -> Divergence:
    return load_divergence(LossSettings.model_validate({"kind": kind, **options}))


def logits(seed: int, scale: float = 3.0, positions: int = POSITIONS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, VOCABULARY, generator=generator, dtype=torch.float64) * scale


def labels_of(teacher: Tensor, k: int) -> SparseLabels:
    """The k most likely tokens and the tail, by plain arithmetic on probabilities."""
    values, ids = teacher.softmax(-1).sort(dim=-1, descending=True)
    return SparseLabels(ids[:, :k], values[:, :k].log(), values[:, k:].sum(-1).log())


def outcomes(teacher: Tensor, student: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """What a divergence is given for the k most likely tokens and the rest."""
    labels = labels_of(teacher, k)
    return teacher_outcomes(labels, temperature), student_outcomes(student, labels.token_ids, temperature)


def coarse(probabilities: Tensor, ids: Tensor) -> Tensor:
    """Probabilities over the listed tokens and all others, by a loop."""
    rows = []
    for row, listed in zip(probabilities, ids.tolist(), strict=True):
        rest = [row[token] for token in range(len(row)) if token not in listed]
        rows.append(torch.stack([*(row[token] for token in listed), torch.stack(rest).sum()]))
    return torch.stack(rows)


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    powered = probabilities ** (1 / temperature)
    return powered / powered.sum(-1, keepdim=True)


# The formulas as the papers write them, on probabilities above 0: of numpy arrays for values, of tensors for gradients.
# `listed` is how many outcomes are single tokens; one more is the rest.
Formula = Callable[..., Any]


def log(x: Any) -> Any:
    return x.log() if isinstance(x, Tensor) else np.log(x)


def kl(p: Any, q: Any) -> Any:
    return (p * (log(p) - log(q))).sum(-1)


def jsd(p: Any, q: Any, listed: int, beta: float = 0.5) -> Any:
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def akl(p: Any, q: Any, listed: int, head_mass: float = 0.5) -> Any:
    values = []
    for p_row, q_row in zip(p, q, strict=True):
        one, other = (torch.as_tensor(row).tolist() for row in (p_row, q_row))
        order = [*sorted(range(listed), key=lambda i: -one[i]), *range(listed, len(one))]
        size = next(n for n in range(1, len(one) + 1) if sum(one[i] for i in order[:n]) >= head_mass or n == len(one))
        head, tail = (sum(abs(one[i] - other[i]) for i in part) for part in (order[:size], order[size:]))
        values.append((head * kl(p_row, q_row) + tail * kl(q_row, p_row)) / (head + tail))
    return torch.stack(values) if isinstance(p, Tensor) else np.array(values)


FORMULAS: dict[str, Formula] = {
    "forward-kl": lambda p, q, listed: kl(p, q),
    "reverse-kl": lambda p, q, listed: kl(q, p),
    "minillm": lambda p, q, listed: kl(q, p),  # its single-step part; of the other, see test_minillm.py
    "generalized-jsd": jsd,
    "skewed-kl": lambda p, q, listed, alpha=0.1: kl(p, alpha * p + (1 - alpha) * q),
    "skewed-reverse-kl": lambda p, q, listed, alpha=0.1: kl(q, (1 - alpha) * p + alpha * q),
    "total-variation": lambda p, q, listed: abs(p - q).sum(-1) / 2,
    "adaptive-kl": akl,
}
OPTIONS = {"generalized-jsd": "beta", "skewed-kl": "alpha", "skewed-reverse-kl": "alpha", "adaptive-kl": "head_mass"}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(seed=seeds, temperature=temperatures, share=shares)
def test_sparse_equals_the_dense_formula_when_every_token_is_listed(
    kind: str, seed: int, temperature: float, share: float
) -> None:
    teacher, student = logits(seed), logits(seed + 1)
    options = {OPTIONS[kind]: share} if kind in OPTIONS else {}
    p, q = ((z / temperature).softmax(-1).numpy() for z in (teacher, student))
    measured = divergence_of(kind, **options)(*outcomes(teacher, student, VOCABULARY, temperature))
    np.testing.assert_allclose(measured.numpy(), FORMULAS[kind](p, q, VOCABULARY, **options), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(seed=seeds, k=st.integers(1, VOCABULARY - 1), temperature=temperatures)
def test_value_and_gradient_are_those_of_the_formula_over_the_coarse_outcomes(
    kind: str, seed: int, k: int, temperature: float
) -> None:
    teacher, student = logits(seed), logits(seed + 1).requires_grad_()
    ids = labels_of(teacher, k).token_ids
    p, q = (tempered(coarse(z.softmax(-1), ids), temperature) for z in (teacher, student))
    formula = FORMULAS[kind](p, q, k)
    measured = divergence_of(kind)(*outcomes(teacher, student, k, temperature))
    torch.testing.assert_close(measured, formula, rtol=1e-7, atol=1e-9)
    expected, got = (torch.autograd.grad(loss.sum(), student)[0] for loss in (formula, measured))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_dense_formula(kind: str) -> None:
    teacher, student = logits(7), logits(8).requires_grad_()
    dense = FORMULAS[kind]((teacher / 2).softmax(-1), (student / 2).softmax(-1), VOCABULARY)
    sparse = divergence_of(kind)(*outcomes(teacher, student, VOCABULARY, 2.0))
    expected, got = (torch.autograd.grad(loss.sum(), student)[0] for loss in (dense, sparse))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(seed=seeds, k=st.integers(1, VOCABULARY), temperature=temperatures)
def test_zero_at_equality_and_never_negative(kind: str, seed: int, k: int, temperature: float) -> None:
    teacher, other = logits(seed), logits(seed + 1)
    student = teacher.clone().requires_grad_()
    same = divergence_of(kind)(*outcomes(teacher, student, k, temperature))
    (gradient,) = torch.autograd.grad(same.sum(), student)
    assert same.abs().max() < 1e-9
    assert gradient.abs().max() < (2.0 if kind == "total-variation" else 1e-7)  # of rounding, sign takes what it gets
    assert divergence_of(kind)(*outcomes(teacher, other, k, temperature)).min() > -1e-12
    single = divergence_of(kind)(*outcomes(teacher.float(), other.float(), k, temperature))
    assert single.dtype == torch.float32 and single.min() > -1e-5


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(seed=seeds, cuts=st.lists(st.integers(0, 6), max_size=3))
def test_the_same_however_the_positions_are_chunked(kind: str, seed: int, cuts: list[int]) -> None:
    p, q = outcomes(logits(seed, positions=6), logits(seed + 1, positions=6), 4, 2.0)
    edges = [0, *sorted(cuts), 6]
    chunks = [divergence_of(kind)(p[i:j], q[i:j]) for i, j in itertools.pairwise(edges)]
    torch.testing.assert_close(torch.cat(chunks), divergence_of(kind)(p, q), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(seed=seeds, order=st.permutations(range(5)))
def test_the_order_of_the_listed_tokens_means_nothing(kind: str, seed: int, order: list[int]) -> None:
    p, q = outcomes(logits(seed), logits(seed + 1), 5)
    shuffled = [*order, 5]  # the rest stays last
    expected = divergence_of(kind)(p, q)
    torch.testing.assert_close(divergence_of(kind)(p[:, shuffled], q[:, shuffled]), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=40)
@given(seed=seeds, scale=st.sampled_from([0.1, 3.0, 50.0]), share=shares)
def test_bounds(seed: int, scale: float, share: float) -> None:
    p, q = outcomes(logits(seed, scale), logits(seed + 1, scale), 5)
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert divergence_of("generalized-jsd")(p, q).max() <= math.log(2) + 1e-12
    assert divergence_of("generalized-jsd", beta=share)(p, q).max() <= entropy + 1e-12
    assert divergence_of("skewed-kl", alpha=share)(p, q).max() <= -math.log(share) + 1e-12
    assert divergence_of("skewed-reverse-kl", alpha=share)(p, q).max() <= -math.log(share) + 1e-12
    assert divergence_of("total-variation")(p, q).max() <= 1 + 1e-12


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"adaptive-kl"}))
@settings(max_examples=15)
@given(seed=seeds)
def test_fewer_outcomes_never_give_more(kind: str, seed: int) -> None:
    """The data-processing inequality: what is measured over k + 1 outcomes is a lower bound of the dense value."""
    values = [divergence_of(kind)(*outcomes(logits(seed), logits(seed + 1), k)) for k in (1, 4, VOCABULARY)]
    assert (values[0] <= values[1] + 1e-12).all() and (values[1] <= values[2] + 1e-12).all()


@settings(max_examples=15)
@given(seed=seeds)
def test_limits(seed: int) -> None:
    p, q = outcomes(logits(seed, 1.0), logits(seed + 1, 1.0), 5)
    forward, reverse, small = divergence_of("forward-kl")(p, q), divergence_of("reverse-kl")(p, q), 1e-7
    for near, limit in (
        (divergence_of("skewed-kl", alpha=small)(p, q), forward),
        (divergence_of("skewed-reverse-kl", alpha=small)(p, q), reverse),
        (divergence_of("generalized-jsd", beta=small)(p, q) / small, forward),
        (divergence_of("generalized-jsd", beta=1 - small)(p, q) / small, reverse),
    ):
        torch.testing.assert_close(near, limit, rtol=1e-3, atol=1e-6)
    swapped = divergence_of("generalized-jsd", beta=0.3)(q, p)
    torch.testing.assert_close(divergence_of("generalized-jsd", beta=0.7)(p, q), swapped)
    assert (divergence_of("skewed-kl", alpha=1 - small)(p, q) < 1e-10).all()


@pytest.mark.parametrize("head_mass", [0.5, 0.9])
def test_the_rest_is_ranked_behind_the_listed_tokens_whatever_its_mass(head_mass: float) -> None:
    """Tokens of 0.2 each and a rest of 0.6: were the rest ranked first, it would be the whole head at 0.5."""
    p, q = torch.tensor([[0.2, 0.2, 0.6]]), torch.tensor([[0.3, 0.4, 0.3]])
    measured = divergence_of("adaptive-kl", head_mass=head_mass)(p.log(), q.log())
    torch.testing.assert_close(measured, divergence_of("forward-kl")(p.log(), q.log()))  # all is head


NOTHING = -torch.inf
EDGES = {  # probabilities: teacher, student, and which kinds are truly infinite there
    "nothing on the teacher's side": ([[0.7, 0.3, 0.0]], [[0.2, 0.3, 0.5]], {"reverse-kl", "minillm", "adaptive-kl"}),
    "nothing on the student's side": ([[0.2, 0.3, 0.5]], [[0.7, 0.3, 0.0]], {"forward-kl", "adaptive-kl"}),
    "nothing on both": ([[0.6, 0.4, 0.0]], [[0.1, 0.9, 0.0]], set()),
    "nothing in common": ([[1.0, 0.0, 0.0]], [[0.0, 0.5, 0.5]], {"forward-kl", "reverse-kl", "minillm", "adaptive-kl"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edge", EDGES)
def test_outcomes_without_mass(kind: str, edge: str) -> None:
    """Values are those of the limit, and gradients are finite, back to the logits."""
    p, q, infinite = EDGES[edge]
    student = torch.tensor(q).log().requires_grad_()
    value = divergence_of(kind)(torch.tensor(p).log(), student.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.isfinite().all()
    if kind not in infinite:
        limit = FORMULAS[kind](np.array(p) + 1e-30, np.array(q) + 1e-30, 2)
        np.testing.assert_allclose(value.detach().numpy(), limit, rtol=1e-5)


def test_what_is_infinite_is_very_large_or_infinite() -> None:
    p, q = torch.tensor([[0.7, 0.3, 0.0]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    assert divergence_of("forward-kl")(q, p).isinf().all()
    floored = 0.2 * math.log(0.2 / 0.7) + 0.5 * (math.log(0.5) - FLOOR)
    assert float(divergence_of("reverse-kl")(p, q)) == pytest.approx(floored, rel=1e-5)
    assert float(divergence_of("adaptive-kl")(p, q)) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_masked_outcomes_and_positions_weigh_nothing(kind: str) -> None:
    p, q = outcomes(logits(3), logits(4), 4)
    whole = torch.nn.functional.pad(p, (2, 0), value=NOTHING), torch.nn.functional.pad(q, (2, 0), value=NOTHING)
    padded = (torch.cat([side, torch.full_like(side[:1], NOTHING)]).requires_grad_() for side in whole)
    teacher, student = padded
    values = divergence_of(kind)(teacher, student)
    torch.testing.assert_close(values[:-1].detach(), divergence_of(kind)(p, q))
    assert values[-1] == 0
    for gradient in torch.autograd.grad(values.sum(), [teacher, student], allow_unused=True):
        assert gradient is not None and gradient.isfinite().all()
        assert (gradient[:, :2] == 0).all() and (gradient[-1] == 0).all()
    assert float(divergence_of(kind)(p[:0], q[:0]).sum()) == 0  # no position at all


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [3, VOCABULARY])
def test_ragged_labels_are_as_good_as_each_alone(kind: str, k: int) -> None:
    """A position with fewer entries is padded behind them, and gives what it gives by itself."""
    teacher, student = logits(5), logits(6).requires_grad_()
    wide, narrow = labels_of(teacher[:2], k), labels_of(teacher[2:], 2)
    room = (0, k - 2)
    ragged = SparseLabels(
        torch.cat([wide.token_ids, torch.nn.functional.pad(narrow.token_ids, room, value=PAD_TOKEN_ID)]),
        torch.cat([wide.logprobs, torch.nn.functional.pad(narrow.logprobs, room, value=NOTHING)]),
        torch.cat([wide.tail_logprob, narrow.tail_logprob]),
    )
    together = divergence_of(kind)(teacher_outcomes(ragged, 2.0), student_outcomes(student, ragged.token_ids, 2.0))
    alone = torch.cat(
        [divergence_of(kind)(*outcomes(teacher[i:j], student[i:j], n, 2.0)) for i, j, n in ((0, 2, k), (2, 3, 2))]
    )
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    expected, got = (torch.autograd.grad(loss.sum(), student)[0] for loss in (alone, together))
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-12)
