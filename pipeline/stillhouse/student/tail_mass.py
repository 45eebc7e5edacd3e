"""The mass of the unlisted tokens: a masked logsumexp with its gradient in closed form.

    listed, tail = listed_and_tail(logits, token_ids)

Composed of torch's `gather`, `scatter` and `logsumexp`, it would pass over the logits many more times, forward and
backward. With this implementation, a step from stored labels is not slower than a cross-entropy step (docs/benchmarks.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def listed_and_tail(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the listed tokens, (positions, k), and log sum exp of all others, (positions, 1).

    Args:
        logits: (positions, vocabulary), finite.
        token_ids: (positions, k) int64; a token may be listed more than once.

    Where every token is listed the second is -inf, with a gradient of 0.
    """
    listed, tail = _ListedAndTail.apply(logits, token_ids)  # type: ignore[no-untyped-call]
    return listed, tail


class _ListedAndTail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        top = logits.amax(dim=-1, keepdim=True)
        others = (logits - top).exp_().scatter_(-1, token_ids, 0.0)  # (positions, vocabulary)
        total = others.sum(dim=-1, keepdim=True)
        small = total.squeeze(-1) < torch.finfo(logits.dtype).tiny ** 0.5
        if bool(small.any()):  # the others underflow next to a listed token: use their own maximum there
            own = logits[small].scatter(-1, token_ids[small], -torch.inf)
            top[small] = own.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
            others[small] = (own - top[small]).exp()
            total[small] = others[small].sum(dim=-1, keepdim=True)
        ctx.save_for_backward(others, total, token_ids)
        return logits.gather(-1, token_ids), total.log() + top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        of_listed, of_tail = gradients
        others, total, token_ids = ctx.saved_tensors
        share = torch.where(total > 0, of_tail / total, 0.0)  # d tail / d logit is the token's share of the tail mass
        return (others * share).scatter_add_(-1, token_ids, of_listed), None
