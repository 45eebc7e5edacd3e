"""Comparisons with a dense formula that hold on every processor: in float64, with a tolerance from what is summed.

    with in_float64():
        lm = load_language_model(folder, device="cpu")
        close_to_dense(found, expected, summed=float(expected.abs().max()))

Float32 sums round differently with every instruction set and number of threads. A gradient through a few layers, with terms
of some hundred that cancel, is then off by 0.01 on one machine and by 0.0001 on another, and a tolerance that lets this
pass lets faults pass too. In float64 the same sums agree to nine digits everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stillhouse.models import load as language_model

ROUNDINGS = 10_000  # one after another: some layers, each with sums over some hundred numbers, forward and backward


def close_to_dense(
    actual: Tensor,
    expected: Tensor,
    *,
    summed: float,
    roundings: int = ROUNDINGS,
    stored: torch.dtype | None = None,
    what: str = "the sums differ",
) -> None:
    """Assert that two computations of the same sums differ by no more than they may round differently.

    Args:
        actual: what the code under test gives.
        expected: what the formula gives, in the same shape and precision.
        summed: the sum of the absolute values of what is summed, which may be much more than the result.
        roundings: how many of the computation's roundings may add up, each of half an epsilon of `summed` or less.
        stored: in which precision one of the two was kept meanwhile; None: in its own.
        what: named in the message.
    """
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} is compared with {expected.dtype}"
    allowed = roundings * torch.finfo(stored or expected.dtype).eps * summed
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=allowed, msg=lambda said: f"{what}: {said}")


def largest(tensor: Tensor) -> float:
    """The largest absolute value: the size of what a logit or a sum of losses, all of one sign, sums."""
    return float(tensor.detach().abs().max())


def summed_gradients(losses: Iterable[Tensor], parameters: Sequence[Tensor]) -> float:
    """The size of what a gradient sums: the largest derivative of each loss, added up over the losses.

    It is one figure for all parameters: a gradient that is 0 because its terms cancel is as inexact as they are large.
    """
    total = 0.0
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        total += max(float(one.abs().max()) for one in found if one is not None)
    return total


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 what a model or a test would compute in float32.

    New tensors, and models that `load_language_model` loads, are float64. So is whatever is asked for in float32: the
    norms, softmaxes and rotations of transformers' models turn to float32 by themselves, even within a model of float64.
    It can decorate a test: `@in_float64()`.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64InItsPlace(), mock.patch.dict(language_model.DTYPES, {"float32": torch.float64}):
            yield
    finally:
        torch.set_default_dtype(before)


class _Float64InItsPlace(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        exchanged = {name: _exchanged(value) for name, value in (kwargs or {}).items()}
        return func(*map(_exchanged, args), **exchanged)


def _exchanged(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
