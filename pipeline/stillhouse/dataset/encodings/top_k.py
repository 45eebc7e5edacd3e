"""`top-k`: the k most likely tokens of every position, most likely first, and the tail mass (all other tokens together).

A log-probability x is rounded to a multiple of a step that doubles whenever the probability falls to a quarter, so that
every entry contributes about equally to the divergence. The log of the tail mass is rounded in the same way:

    -x from    0      1.375   2.75    4.125   5.5
    step       1/128  1/64    1/32    1/16    1/8         (1/8 from there on)

Error bounds: a stored log-probability is off by at most half a step: 1/256 for tokens above a probability of 1/4, and 1/16
for the rarest. Over the k + 1 outcomes,

    KL(given || stored, normalised) <= min(8.5e-6 (k + 1), 2e-3) nats        (`error_bound`)

since log E[exp(d)] - E[d] <= exp(max |d|) E[d^2] / 2 with p d^2 <= 1.05 * 2^-16 for each outcome, and <= max |d|^2 / 2 for
any k by Hoeffding's lemma. The mean is about 5e-5 nats (docs/benchmarks.md). The bounds exclude the earlier rounding of the
teacher's log-probabilities to float16: at most 2^-9 down to -4, 2^-8 down to -8. Token ids are exact up to 2^31; 0 and
-inf are stored exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.dataset.encodings.base import PackedLabels, flatten_column, flatten_lists, flatten_nested_lists, list_at
from stillhouse.records import EncodingName, Row, SoftLabels

WIDTH = 1.375  # of a range with one step: close to log 4, and on every range's grid, so that rounding is idempotent
FINEST, COARSEST = 2.0**-7, 2.0**-3  # steps
_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)  # every float16: a look-up is faster


class TopK:
    """The encoding of top-k labels, see the module's docstring; `Encoding` in base.py is the protocol."""

    name: EncodingName = "top-k"
    fields = (
        pa.field("top_token_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("top_logprobs", pa.list_(pa.list_(pa.float16()))),
        pa.field("tail_logprob", pa.list_(pa.float32())),
    )
    columns = tuple(field.name for field in fields)
    # BYTE_STREAM_SPLIT would make float16 smaller too, but DuckDB (2.0) cannot read float16 columns with it.
    parquet_encodings: Mapping[str, str] = MappingProxyType(
        {"top_token_ids": "BYTE_STREAM_SPLIT", "top_logprobs": "PLAIN", "tail_logprob": "BYTE_STREAM_SPLIT"}
    )

    def encode(self, labels: SoftLabels) -> Row:
        return {
            "top_token_ids": list(labels.token_ids),
            "top_logprobs": list(round_logprobs(labels.logprobs).astype(np.float16)),
            "tail_logprob": round_logprobs(labels.tail_logprob),
        }

    def labels_at(self, rows: pa.RecordBatch | pa.Table, index: int) -> SoftLabels | None:
        token_ids, logprobs, tail = (list_at(rows, column, index) for column in self.columns)
        if token_ids is None:
            return None
        shape = (len(tail), -1)
        return SoftLabels(
            flatten_lists(token_ids)[0].reshape(shape), flatten_lists(logprobs)[0].reshape(shape), tail.to_numpy()
        )

    def decode(self, rows: pa.RecordBatch | pa.Table) -> PackedLabels:
        token_ids, offsets = flatten_nested_lists(rows, "top_token_ids")
        logprobs, _ = flatten_nested_lists(rows, "top_logprobs")
        return PackedLabels(token_ids, _HALVES[logprobs.view(np.uint16)], offsets, flatten_column(rows, "tail_logprob"))


def error_bound(k: int) -> float:
    """Return the largest KL from the given labels to the stored ones over k + 1 outcomes, in nats (module docstring)."""
    return min(8.5e-6 * (k + 1), 2e-3)


def round_logprobs(logprobs: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Round log-probabilities of any shape to the grid in the module's docstring; the rounding is monotonic."""
    given = logprobs.astype(np.float32)
    finite = np.isfinite(given)
    known = np.where(finite, given, np.float32(0))
    step = np.minimum(FINEST * 2.0 ** np.floor(np.abs(known) / WIDTH).clip(max=8), COARSEST).astype(np.float32)
    return np.where(finite, np.rint(known / step) * step, given)


ENCODING = TopK()
