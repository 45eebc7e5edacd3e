"""The logsumexp with holes against torch's own, values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.student.tail_mass import listed_and_tail

pytestmark = pytest.mark.numeric


def by_hand(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """One position and one token after another."""
    listed, rests = [], []
    for row, ids in zip(logits, token_ids.tolist(), strict=True):
        listed.append(torch.stack([row[token] for token in ids]))
        rests.append(torch.stack([row[token] for token in range(len(row)) if token not in ids]).logsumexp(0))
    return torch.stack(listed), torch.stack(rests).unsqueeze(-1)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 8), scale=st.sampled_from([0.1, 3.0, 60.0, 900.0]))
def test_values_and_gradients_are_those_of_the_sum_one_by_one(seed: int, k: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(4, 9, generator=random, dtype=torch.float64) * scale).requires_grad_()
    ids = torch.stack([torch.randperm(9, generator=random)[:k] for _ in range(4)])
    weights = [torch.randn(4, width, generator=random, dtype=torch.float64) for width in (k, 1)]

    def of(function: object) -> tuple[list[Tensor], Tensor]:
        found = function(logits, ids)  # type: ignore[operator]
        total = sum((part * weight).sum() for part, weight in zip(found, weights, strict=True))
        return [part.detach() for part in found], torch.autograd.grad(total, logits)[0]

    (values, gradient), (expected, wanted) = of(listed_and_tail), of(by_hand)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_torch_s_own_check_of_gradients() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 3], [6, 6], [2, 5]])  # one of them twice
    assert torch.autograd.gradcheck(lambda given: listed_and_tail(given, ids), logits)


@pytest.mark.parametrize("gap", [10.0, 60.0, 120.0, 1e4])
def test_a_rest_far_below_the_listed_tokens_keeps_its_size_in_float32(gap: float) -> None:
    logits = torch.tensor([[gap, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    listed, rest = listed_and_tail(logits, torch.tensor([[0], [0]]))
    torch.testing.assert_close(rest, torch.log(torch.tensor([[2.0], [2.0]])))
    assert float(listed.detach()[0, 0]) == gap
    (gradient,) = torch.autograd.grad(rest.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.5, 0.5]] * 2))


def test_where_all_are_listed_nothing_is_left_and_nothing_is_pulled() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    _, rest = listed_and_tail(logits, torch.tensor([[0, 1, 2]]))
    assert float(rest.detach()) == -torch.inf
    (gradient,) = torch.autograd.grad(rest.sum(), logits)
    assert torch.equal(gradient, torch.zeros(1, 3))
