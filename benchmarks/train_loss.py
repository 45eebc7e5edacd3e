"""One loss, forward and backward, in a separate process, whose memory `train_memory.py` measures.

python -m benchmarks.train_loss '{"name": "...", "labels": "top-k", ...}'      # a `Case`; prints a JSON object
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.train_memory import Case
from stillhouse.models.head import Head
from stillhouse.student.losses.base import SparseLabels
from stillhouse.student.losses.forward_kl import divergence
from stillhouse.student.training.forward import chunked_loss
from stillhouse.student.training.objective import Objective


def labels_of(case: Case, random: torch.Generator) -> SparseLabels | None:
    """Return labels with random, distinct ids at each position and falling probabilities; None for cross-entropy."""
    if case.labels is None:
        return None
    shape = (case.tokens, case.entries)
    step = case.vocabulary // case.entries
    ids = torch.arange(case.entries) * step + torch.randint(step, shape, generator=random)
    weights = -torch.arange(1.0, case.entries + 1).log().expand(shape)
    tail = -torch.inf if case.labels == "sampled" else -3.0
    rest = torch.full((case.tokens,), tail)
    total = torch.logaddexp(weights.logsumexp(dim=-1), rest)
    return SparseLabels(ids, weights - total.unsqueeze(-1), rest - total)


def resident(name: str) -> int:
    """Return memory of this process in bytes: `VmRSS` is the current value, `VmHWM` the peak since `forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def forget_peak() -> None:
    """Reset the peak memory (`VmHWM`) to the current value: see proc_pid_clear_refs(5)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    random = torch.Generator().manual_seed(0)
    layer = nn.Linear(case.width, case.vocabulary, bias=False)
    nn.init.normal_(layer.weight, std=0.02, generator=random)
    hidden = torch.randn(case.tokens, case.width, generator=random, requires_grad=True)
    targets = torch.randint(case.vocabulary, (case.tokens,), generator=random)
    labels = labels_of(case, random)
    objective = Objective(None if labels is None else divergence, 1.0, 1.0, 1.0)
    torch.ones(1, requires_grad=True).sum().backward()  # autograd's one-time start is not part of the loss
    before = resident("VmRSS")
    forget_peak()
    began = time.perf_counter()
    loss = chunked_loss(
        objective, Head(layer), hidden, targets, lambda part: None if labels is None else labels[part], case.chunk
    )
    (loss / case.tokens).backward()
    seconds = time.perf_counter() - began
    print(json.dumps({"bytes": resident("VmHWM") - before, "seconds": seconds, "loss": loss.item()}), flush=True)


if __name__ == "__main__":
    main()
