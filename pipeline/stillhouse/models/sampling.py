"""Sample tokens from logits by inverse transform, with uniform numbers that the caller draws.

Each uniform number in [0, 1) selects the token at which the cumulative softmax first exceeds it, which is
`torch.multinomial` with replacement, at one number per sampled token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.models.layout import at_least_float32


def sample_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample tokens of softmax(logits): (..., vocabulary) and (..., draws) in [0, 1) -> (..., draws)."""
    precise = torch.float32 if logits.device.type == "mps" else torch.float64  # mps has no float64
    cumulative = at_least_float32(logits).softmax(dim=-1).cumsum(dim=-1, dtype=precise)
    target = uniform.to(cumulative) * cumulative[..., -1:]  # below the sum, which rounding keeps from being 1
    return torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
