"""The comparisons of tests/precision.py: what rounding does passes, and a fault does not."""

import pytest
import torch
from torch import nn

from tests.precision import close_to_dense, in_float64, summed_gradients

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_in_another_order_is_close_and_a_term_too_little_is_not(dtype: torch.dtype) -> None:
    """Terms of both signs that cancel: the sum says nothing of how inexact it is, the terms do."""
    terms = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) * 100
    terms = torch.cat([terms, -terms.flip(0), torch.ones(1, dtype=dtype)])
    one, other, summed = terms.cumsum(0)[-1], terms.sum(), float(terms.abs().sum())
    close_to_dense(one, other, summed=summed, roundings=1)
    with pytest.raises(AssertionError, match="the gradient: Scalars are not close"):
        close_to_dense(
            one + 2 * torch.finfo(dtype).eps * summed, other, summed=summed, roundings=1, what="the gradient"
        )


def test_float32_is_not_compared_with_float64() -> None:
    with pytest.raises(AssertionError, match=r"torch.float32 is compared with torch.float64"):
        close_to_dense(torch.zeros(1), torch.zeros(1, dtype=torch.float64), summed=1.0)


def test_the_size_of_a_gradient_is_that_of_its_terms() -> None:
    weight = torch.tensor([3.0, 1.0], requires_grad=True)
    unread = torch.zeros(2, requires_grad=True)
    losses = [weight[0] * 5, -weight[0] * 5, weight.sum()]
    assert summed_gradients(losses, [weight, unread]) == 11


def test_nothing_is_rounded_to_float32_within() -> None:
    given = torch.tensor([1 / 3], dtype=torch.float64)
    with in_float64():
        assert torch.tensor([0.5]).dtype == torch.ones(1, dtype=torch.float32).dtype == torch.float64
        for kept in (
            given.float(),
            given.to(torch.float32),
            given.to(dtype=torch.float32),
            given.softmax(0, torch.float32),
        ):
            assert kept.dtype == torch.float64
        assert torch.equal(given.float(), given)
        assert nn.functional.softmax(given, dim=0, dtype=torch.float32).dtype == torch.float64
        assert given.half().dtype == torch.float16
    assert given.float().dtype == torch.tensor([0.5]).dtype == torch.float32
