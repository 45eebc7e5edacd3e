"""The Arrow schemas of completions and rejections, and the conversion of records to rows and back.

    >>> completion = completion_at(next(dataset.batches("train")), 0)
    >>> batch = record_batch([completion_row(completion, soft="top-k")], completion_schema(soft="top-k"))
    >>> completion_at(batch, 0).text == completion.text
    True

Schemas are written out here (and in encodings/ for the soft labels), never inferred from rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy.typing as npt
import pyarrow as pa

from stillhouse.dataset.encodings import find_encoding
from stillhouse.records import (
    Completion,
    EncodingName,
    Message,
    Prompt,
    Rejection,
    Row,
    SampledLabels,
    SoftLabels,
    TokenLogprob,
    TokenTrace,
)

# --------------------------------------------------------------------------------------------------------------- schemas

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_TOKEN = [pa.field("token", pa.string()), pa.field("logprob", pa.float32())]
_TOKEN_LOGPROBS = pa.list_(pa.struct([*_TOKEN, pa.field("top", pa.list_(pa.struct(_TOKEN)))]))

_TEXT_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("prompt_id", pa.string()),
    pa.field("sample", pa.int32()),
    pa.field("prompt", MESSAGES),
    pa.field("completion", MESSAGES),
    pa.field("reasoning", pa.string()),
    pa.field("reference", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("completion_tokens", pa.int32()),
    pa.field("cost_usd", pa.float64()),
    pa.field("teacher", pa.string()),
    pa.field("created_at", pa.string()),
    pa.field("token_logprobs", _TOKEN_LOGPROBS),
]
_TRACE_FIELDS = [
    pa.field("prompt_token_ids", pa.list_(pa.int32())),
    pa.field("completion_token_ids", pa.list_(pa.int32())),
    pa.field("completion_logprobs", pa.list_(pa.float32())),
]
_REJECTION_FIELDS = [
    pa.field("stage", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("attempts", pa.int32()),
]


def completion_schema(*, soft: EncodingName | None) -> pa.Schema:
    """Return the schema of data/*.parquet: text only, or text with token ids, log-probabilities and soft labels."""
    return pa.schema([*_TEXT_FIELDS, *([*_TRACE_FIELDS, *find_encoding(soft).fields] if soft else [])])


def rejection_schema(*, soft: EncodingName | None) -> pa.Schema:
    """Return the schema of rejected/*.parquet: a completion's columns (null without one) and why it was rejected."""
    return pa.schema([*completion_schema(soft=soft), *_REJECTION_FIELDS])


def completion_row(completion: Completion, *, soft: EncodingName | None) -> Row:
    """Return a completion as a row of `completion_schema(soft=soft)`."""
    row: Row = {
        **_prompt_columns(completion.id, completion.prompt, completion.sample),
        "completion": [{"role": "assistant", "content": completion.text}],
        "reasoning": completion.reasoning,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "cost_usd": completion.cost_usd,
        "teacher": completion.teacher,
        "created_at": completion.created_at,
        "token_logprobs": _token_logprobs(completion),
    }
    trace = completion.trace
    if soft and trace is not None:
        row["prompt_token_ids"] = trace.prompt_token_ids
        row["completion_token_ids"] = trace.completion_token_ids
        row["completion_logprobs"] = trace.completion_logprobs
        if trace.soft is not None:
            row |= find_encoding(soft).encode(trace.soft)
    return row


def rejection_row(rejection: Rejection, *, soft: EncodingName | None) -> Row:
    """Return a rejection as a row of `rejection_schema(soft=soft)`."""
    kept = rejection.completion
    columns = (
        completion_row(kept, soft=soft)
        if kept is not None
        else _prompt_columns(rejection.id, rejection.prompt, rejection.sample) | {"cost_usd": rejection.cost_usd}
    )
    return {
        **columns,
        "stage": rejection.stage,
        "reason": rejection.reason,
        "detail": rejection.detail,
        "attempts": rejection.attempts,
    }


def _token_logprobs(completion: Completion) -> list[Row] | None:
    if completion.token_logprobs is None:
        return None
    return [
        {
            "token": one.token,
            "logprob": one.logprob,
            "top": [{"token": token, "logprob": logprob} for token, logprob in one.top],
        }
        for one in completion.token_logprobs
    ]


def _prompt_columns(id_: str, prompt: Prompt, sample: int) -> Row:
    return {
        "id": id_,
        "prompt_id": prompt.id,
        "sample": sample,
        "prompt": [message.as_dict() for message in prompt.messages],
        "reference": prompt.reference,
    }


def record_batch(rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    """Return rows as one Arrow batch with exactly `schema`; columns that a row lacks are null."""
    arrays = [pa.array([row.get(field.name) for row in rows], type=field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# ------------------------------------------------------------------------------------------------------------------ rows


def completion_at(rows: pa.RecordBatch | pa.Table, index: int) -> Completion:
    """Return the completion in row `index`, the inverse of `completion_row`. Arrays are views of Arrow's memory."""
    value = _Cell(rows, index)
    trace = None
    if "completion_token_ids" in rows.schema.names and value.present("completion_token_ids"):
        trace = TokenTrace(
            prompt_token_ids=value.array("prompt_token_ids"),
            completion_token_ids=value.array("completion_token_ids"),
            completion_logprobs=value.array("completion_logprobs"),
            soft=_soft_labels_at(rows, index),
        )
    return Completion(
        id=value("id"),
        prompt=prompt_at(rows, index),
        sample=value("sample"),
        text=text_of_turns(value("completion")),
        finish_reason=value("finish_reason"),
        prompt_tokens=value("prompt_tokens"),
        completion_tokens=value("completion_tokens"),
        teacher=value("teacher"),
        created_at=value("created_at"),
        cost_usd=value("cost_usd"),
        trace=trace,
        reasoning=value("reasoning"),
        token_logprobs=_token_logprobs_at(value),
    )


def text_of_turns(turns: Iterable[Mapping[str, str]]) -> str:
    """Return the text of a completion from its turns, the value of its column."""
    return "".join(turn["content"] for turn in turns)


def prompt_at(rows: pa.RecordBatch | pa.Table, index: int) -> Prompt:
    """Return the prompt in row `index` of completions or rejections."""
    value = _Cell(rows, index)
    return Prompt(tuple(Message(turn["role"], turn["content"]) for turn in value("prompt")), value("reference"))


def _token_logprobs_at(value: _Cell) -> tuple[TokenLogprob, ...] | None:
    listed = value("token_logprobs")
    if listed is None:
        return None
    return tuple(
        TokenLogprob(one["token"], one["logprob"], tuple((top["token"], top["logprob"]) for top in one["top"]))
        for one in listed
    )


def _soft_labels_at(rows: pa.RecordBatch | pa.Table, index: int) -> SoftLabels | SampledLabels | None:
    for name in get_args(EncodingName):
        encoding = find_encoding(name)
        if set(encoding.columns) <= set(rows.schema.names):
            labels: SoftLabels | SampledLabels | None = encoding.labels_at(rows, index)
            return labels
    return None


class _Cell:
    """One row of Arrow columns, by name."""

    def __init__(self, rows: pa.RecordBatch | pa.Table, index: int) -> None:
        self._rows = rows
        self._index = index

    def _scalar(self, name: str) -> Any:
        return self._rows.column(name)[self._index]

    def __call__(self, name: str) -> Any:
        return self._scalar(name).as_py()

    def present(self, name: str) -> bool:
        return bool(self._scalar(name).is_valid)

    def array(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self._scalar(name).values.to_numpy(zero_copy_only=False)
        return array
