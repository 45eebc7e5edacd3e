"""`sampled`: tokens drawn at random from the teacher's full distribution at every position, and how often each came.

    p_hat(token) = count / draws,        E[p_hat] = p

Random draws with replacement are an unbiased estimate of the distribution, and so the gradient of a forward KL from them
is one of the full distribution's: Sparse Logit Sampling, arXiv 2503.16870. The likely tokens' share of the draws is small
in number, so that 50 draws are about 15 tokens; none of the mass is cut off.

Error bounds: what is stored is exact, ids to 2^31 and counts to 65,535. The estimate itself is random: p_hat has the
standard error sqrt(p (1 - p) / draws), its mean distance from p in total variation is at most

    sum over tokens of sqrt(p (1 - p) / draws) / 2

and both vanish in the mean over positions. `decode` gives log(count / draws), exact to float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from stillhouse.dataset.encodings.base import PackedLabels, list_at, nested_values, ragged
from stillhouse.records import EncodingName, Row, SampledLabels

_LOG = np.log(np.maximum(np.arange(1 << 16), 1), dtype=np.float32)  # of every count that a uint16 holds


class Sampled:
    """See the module's docstring; `Encoding` in base.py is the protocol."""

    name: EncodingName = "sampled"
    fields = (
        pa.field("sampled_token_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("sampled_counts", pa.list_(pa.list_(pa.uint16()))),
    )
    columns = tuple(field.name for field in fields)
    parquet: Mapping[str, str] = MappingProxyType(
        {"sampled_token_ids": "BYTE_STREAM_SPLIT", "sampled_counts": "BYTE_STREAM_SPLIT"}
    )

    def encode(self, labels: SampledLabels) -> Row:
        inner = labels.offsets[1:-1]
        return {
            "sampled_token_ids": np.split(labels.token_ids, inner),
            "sampled_counts": np.split(labels.counts, inner),
        }

    def restore(self, rows: pa.RecordBatch | pa.Table, index: int) -> SampledLabels | None:
        token_ids, counts = (list_at(rows, column, index) for column in self.columns)
        if token_ids is None:
            return None
        values, offsets = ragged(token_ids)
        return SampledLabels(values, ragged(counts)[0], offsets)

    def decode(self, rows: pa.RecordBatch | pa.Table) -> PackedLabels:
        token_ids, offsets = nested_values(rows, "sampled_token_ids")
        counts, _ = nested_values(rows, "sampled_counts")
        draws = np.diff(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[offsets])  # (positions,)
        logprobs = _LOG[counts] - np.repeat(np.log(np.maximum(draws, 1)).astype(np.float32), np.diff(offsets))
        return PackedLabels(token_ids, logprobs, offsets, np.full(len(draws), -np.inf, np.float32))


ENCODING = Sampled()
