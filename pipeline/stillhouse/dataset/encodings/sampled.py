"""`sampled`: tokens drawn at random from the teacher's full distribution at every position, with the count of each token.

    p_hat(token) = count / draws,        E[p_hat] = p

Draws with replacement give an unbiased estimate of the distribution, so the gradient of a forward KL on them is an
unbiased estimate of the full distribution's gradient: Sparse Logit Sampling, arXiv 2503.16870. Likely tokens are drawn
repeatedly, so 50 draws give about 15 distinct tokens; no tail mass is cut off.

Error bounds: storage is exact, ids up to 2^31 and counts up to 65,535. The estimate itself is random: p_hat has a standard
error of sqrt(p (1 - p) / draws), its expected total variation distance from p is at most

    sum over tokens of sqrt(p (1 - p) / draws) / 2

and the errors average out over positions. `decode` returns log(count / draws), exact to float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from stillhouse.dataset.encodings.base import PackedLabels, flatten_lists, flatten_nested_lists, list_at
from stillhouse.records import EncodingName, Row, SampledLabels

_LOG = np.log(np.maximum(np.arange(1 << 16), 1), dtype=np.float32)  # log of every uint16 count


class Sampled:
    """The encoding of sampled labels, see the module's docstring; `Encoding` in base.py is the protocol."""

    name: EncodingName = "sampled"
    fields = (
        pa.field("sampled_token_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("sampled_counts", pa.list_(pa.list_(pa.uint16()))),
    )
    columns = tuple(field.name for field in fields)
    parquet_encodings: Mapping[str, str] = MappingProxyType(
        {"sampled_token_ids": "BYTE_STREAM_SPLIT", "sampled_counts": "BYTE_STREAM_SPLIT"}
    )

    def encode(self, labels: SampledLabels) -> Row:
        inner = labels.offsets[1:-1]
        return {
            "sampled_token_ids": np.split(labels.token_ids, inner),
            "sampled_counts": np.split(labels.counts, inner),
        }

    def labels_at(self, rows: pa.RecordBatch | pa.Table, index: int) -> SampledLabels | None:
        token_ids, counts = (list_at(rows, column, index) for column in self.columns)
        if token_ids is None:
            return None
        values, offsets = flatten_lists(token_ids)
        return SampledLabels(values, flatten_lists(counts)[0], offsets)

    def decode(self, rows: pa.RecordBatch | pa.Table) -> PackedLabels:
        token_ids, offsets = flatten_nested_lists(rows, "sampled_token_ids")
        counts, _ = flatten_nested_lists(rows, "sampled_counts")
        draws = np.diff(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[offsets])  # (positions,)
        logprobs = _LOG[counts] - np.repeat(np.log(np.maximum(draws, 1)).astype(np.float32), np.diff(offsets))
        return PackedLabels(token_ids, logprobs, offsets, np.full(len(draws), -np.inf, np.float32))


ENCODING = Sampled()
