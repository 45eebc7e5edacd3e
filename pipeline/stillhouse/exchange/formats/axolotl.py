"""Axolotl's format for offline knowledge distillation, as a tokenized data set.

    input_ids, attention_mask, labels       labels are -100 in the prompt
    target_token_ids, target_logprobs       row j is the teacher's distribution of input_ids[j + 1]: (time, k)
    target_mask                             0 where labels[j + 1] is -100, and where a position has fewer than k tokens

This is the alignment documented in the README of Axolotl's `kd` integration (use kd_temperature 1: for tokenized rows,
Axolotl applies the temperature only to the student). Axolotl renormalises the teacher over the k listed tokens, and so does
this export: the tail mass is lost, which is biased (arXiv 2503.16870). Sampled labels already sum to one; with
`kd_normalize_topk: false` they stay unbiased.

Importing rows needs the tokenizer, since they contain no text. Axolotl itself was not run on these files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.exchange.base import (
    ExportOptions,
    ExportPlan,
    ImportedAnswer,
    ImportSource,
    Json,
    Read,
    SkippedRow,
    SourceLine,
)
from stillhouse.exchange.lines import read_rows
from stillhouse.exchange.tokens import (
    PromptDecoder,
    TokenRow,
    build_labels,
    chosen_logprobs,
    soft_encoding,
    to_arrow_lists,
    token_columns,
    token_rows,
)
from stillhouse.records import TokenTrace

_IGNORED = -100
_PADDING = -1e9  # the log-probability of padding, as in Axolotl
_LABELS = pa.list_(pa.int64())
_SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int64())),
        pa.field("attention_mask", pa.list_(pa.int8())),
        pa.field("labels", _LABELS),
        pa.field("target_token_ids", pa.list_(pa.list_(pa.int64()))),
        pa.field("target_logprobs", pa.list_(pa.list_(pa.float32()))),
        pa.field("target_mask", pa.list_(pa.list_(pa.int8()))),
    ]
)


class Axolotl:
    """Axolotl's format, see the module's docstring; `Format` in base.py is the protocol."""

    soft = True

    def plan_export(self, dataset: Dataset, options: ExportOptions) -> ExportPlan:
        encoding = soft_encoding(dataset, "axolotl")

        def convert(rows: pa.RecordBatch) -> pa.RecordBatch:
            columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _SCHEMA.names}
            for row in token_rows(rows, encoding):
                for name, value in _columns(row).items():
                    columns[name].append(value)
            return pa.RecordBatch.from_arrays(
                [to_arrow_lists(columns[one.name], one.type) for one in _SCHEMA], schema=_SCHEMA
            )

        note = (
            "sampled labels: set kd_normalize_topk to false to keep them unbiased"
            if encoding.name == "sampled"
            else "Axolotl renormalises over the top-k, and so does this export: the tail mass is lost"
        )
        return ExportPlan(
            _SCHEMA,
            token_columns(encoding),
            convert,
            file_type="parquet",
            notes=(note,),
            why_skipped="they have no soft labels",
        )

    def read_rows(self, source: ImportSource) -> Iterator[Read]:
        tokens = PromptDecoder.open(source.tokenizer, "axolotl")
        for file in source.files:
            for place, row in read_rows(file, _SCHEMA.names):
                yield _parse_row(row, place, tokens, source)


def _columns(row: TokenRow) -> dict[str, npt.NDArray[Any]]:
    input_ids = row.input_ids
    shape = (len(input_ids), row.valid.shape[1])
    known = slice(len(row.prompt) - 1, len(input_ids) - 1)  # the positions that predict a completion token
    labels = np.full(len(input_ids), _IGNORED)
    labels[len(row.prompt) :] = row.completion
    token_ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int8)
    logprobs = np.full(shape, _PADDING, np.float32)
    token_ids[known], mask[known] = row.token_ids, row.valid
    logprobs[known] = np.where(row.valid, _renormalised(row.logprobs), _PADDING)
    return {
        "input_ids": input_ids,
        "attention_mask": np.ones(len(input_ids), np.int8),
        "labels": labels,
        "target_token_ids": token_ids,
        "target_logprobs": logprobs,
        "target_mask": mask,
    }


def _renormalised(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return log-probabilities renormalised over the listed tokens: (time, widest)."""
    precise = logprobs.astype(np.float64)
    listed: npt.NDArray[np.float64] = precise - np.log(np.exp(precise).sum(axis=1, keepdims=True))
    return listed


def _parse_row(row: Json, place: SourceLine, tokens: PromptDecoder, source: ImportSource) -> Read:
    for name in _SCHEMA.names:
        if row.get(name) is None and name != "attention_mask":
            raise UsageError(f"{place} has no {name!r}", fix=f"write all of {', '.join(_SCHEMA.names)}")
    try:
        input_ids, labels = np.asarray(row["input_ids"], np.int32), np.asarray(row["labels"], np.int64)
        targets = np.asarray(row["target_token_ids"], np.int32)
        logprobs = np.asarray(row["target_logprobs"], np.float32)
        mask = np.asarray(row["target_mask"], np.int8) > 0
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{place}: the columns are not lists of numbers, with inner lists of equal length: {error}",
            fix="write one number, or one list of k numbers, per token",
        ) from None
    if not len(input_ids) == len(labels) == len(targets) == len(logprobs) == len(mask) or targets.shape != mask.shape:
        raise UsageError(f"{place}: the columns differ in length", fix="give each one item per token of input_ids")
    learnt = np.flatnonzero(labels != _IGNORED)
    if not len(learnt) or not learnt[0]:
        return SkippedRow("no-prompt", "labels mark no completion after a prompt", place)
    first, last = int(learnt[0]), int(learnt[-1]) + 1
    if len(learnt) != last - first:
        return SkippedRow("several-answers", "labels mark more than one answer in the conversation", place)
    known = slice(first - 1, last - 1)
    if not mask[known].any(axis=1).all() or mask[: first - 1].any():
        raise UsageError(
            f"{place}: target_mask does not begin one row before the first label, as Axolotl documents",
            fix="export the data set again, with a release that follows this",
        )
    prompt = tokens.prompt(input_ids[:first].tolist())
    if prompt is None:
        return SkippedRow("other-template", "the tokenizer's chat template cannot produce this prompt", place)
    completion = input_ids[first:last]
    text, ended = tokens.completion(completion.tolist())
    trace = TokenTrace(
        prompt_token_ids=input_ids[:first],
        completion_token_ids=completion,
        completion_logprobs=chosen_logprobs(completion, targets[known], logprobs[known], mask[known]),
        soft=build_labels(targets[known], logprobs[known], mask[known], source.soft),
    )
    return ImportedAnswer(
        prompt,
        text,
        place,
        finish_reason="stop" if ended else "length",
        prompt_tokens=first,
        completion_tokens=len(completion),
        trace=trace,
    )


FORMAT = Axolotl()
