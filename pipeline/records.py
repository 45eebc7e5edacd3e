"""The nouns that flow through every stage, and the Arrow schemas they are kept in.

    Prompt -> Completion (+ SoftLabels) -> training batch -> report row
              Rejection

A schema is written out here, never inferred from rows. `FORMAT_VERSION` goes up when one changes in a way that an older
reader would misread.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FORMAT_VERSION = 1

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "other"]
Split = Literal["train", "validation"]
Row = dict[str, Any]  # one row, in the form that pyarrow takes; the schemas below are its type


def content_hash(value: object) -> str:
    """32 hex digits that name a JSON-like value by its content (sha256 of its canonical JSON, cut to 128 bits).

    Mapping entries that are None are left out, so that a setting added later does not rename what is already there.
    """
    canonical = json.dumps(_without_none(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _without_none(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Prompt:
    """One conversation to be answered, with the gold answer that came with it, if any."""

    messages: tuple[Message, ...]
    reference: str | None = None

    @cached_property
    def id(self) -> str:
        """A hash of the messages: the same conversation has the same id in every file and on every machine."""
        return content_hash([message.as_dict() for message in self.messages])

    @property
    def text(self) -> str:
        """What the user said, without the system message: what two prompts are compared by."""
        return "\n".join(message.content for message in self.messages if message.role != "system")


@dataclass(frozen=True)
class TeacherIdentity:
    """Who gave the labels. What is None is not known for this kind of teacher.

    `content_sha256` names local weights by content and then stands for `model` and `revision` in request keys, so that a
    moved folder is the same teacher and a retrained one is not.
    """

    kind: str
    model: str
    revision: str | None = None
    endpoint: str | None = None
    fingerprint: str | None = None  # what a server said of itself; kept, but no part of a key
    content_sha256: str | None = None
    options_sha256: str | None = None  # of the kind's own options that shape an answer
    tokenizer_sha256: str | None = None
    chat_template_sha256: str | None = None
    vocabulary_size: int | None = None

    def shaping(self) -> Mapping[str, object]:
        """What of the identity shapes an answer, and so belongs into a request's key."""
        if self.content_sha256:
            return {"kind": self.kind, "content": self.content_sha256, "options": self.options_sha256}
        return {
            "kind": self.kind,
            "model": self.model,
            "revision": self.revision,
            "endpoint": self.endpoint,
            "options": self.options_sha256,
        }


@dataclass(frozen=True)
class SoftLabels:
    """The teacher's distribution over the next token at every completion position, as its k most likely tokens.

    `logprobs` are natural logarithms of the teacher's own probabilities at temperature 1, normalised over the full
    vocabulary; `tail_logprob` is the logarithm of the mass of every token not listed, -inf where all are. Rows are sorted
    from the most to the least likely.
    """

    token_ids: npt.NDArray[np.int32]  # (time, k)
    logprobs: npt.NDArray[np.float16]  # (time, k)
    tail_logprob: npt.NDArray[np.float32]  # (time,)

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.logprobs.shape or self.token_ids.shape[:1] != self.tail_logprob.shape:
            raise ValueError(
                f"soft labels of unlike shapes: token_ids {self.token_ids.shape}, logprobs {self.logprobs.shape}, "
                f"tail_logprob {self.tail_logprob.shape}"
            )

    @property
    def k(self) -> int:
        return int(self.token_ids.shape[1])

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])


@dataclass(frozen=True)
class TokenTrace:
    """The exact tokens of a prompt and its completion, as the teacher saw and wrote them.

    The end-of-turn token, where the teacher wrote one, is the last completion token.
    """

    prompt_token_ids: npt.NDArray[np.int32]  # (prompt time,)
    completion_token_ids: npt.NDArray[np.int32]  # (time,)
    completion_logprobs: npt.NDArray[np.float32]  # (time,), the teacher's own, temperature 1
    soft: SoftLabels | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer as an API names it: by its text, without an id."""

    token: str
    logprob: float  # natural logarithm
    top: tuple[tuple[str, float], ...] = ()  # the most likely tokens at this place, with theirs


@dataclass(frozen=True)
class Completion:
    """One teacher answer to one prompt. Token counts are None where a server did not tell them."""

    id: str  # the request's key
    prompt: Prompt
    sample: int
    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    completion_tokens: int | None
    teacher: str
    created_at: str  # ISO 8601, UTC
    cost_usd: float | None = None
    trace: TokenTrace | None = None
    reasoning: str | None = None  # what a reasoning model thought before it answered, where the server shows it
    token_logprobs: tuple[TokenLogprob, ...] | None = None  # of an API that names tokens by text


@dataclass(frozen=True)
class Rejection:
    """A prompt that got no usable completion, with the reason; whatever was paid for is kept with it."""

    id: str
    prompt: Prompt
    sample: int
    stage: str  # "teacher", or "quality"
    reason: str  # one word or two, to be counted by
    detail: str
    attempts: int = 1
    completion: Completion | None = None
    cost_usd: float | None = None  # of attempts that were billed and gave no completion


# --------------------------------------------------------------------------------------------------------------- schemas

_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_TOKEN = [pa.field("token", pa.string()), pa.field("logprob", pa.float32())]
_TOKEN_LOGPROBS = pa.list_(pa.struct([*_TOKEN, pa.field("top", pa.list_(pa.struct(_TOKEN)))]))

_TEXT_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("prompt_id", pa.string()),
    pa.field("sample", pa.int32()),
    pa.field("prompt", _MESSAGES),
    pa.field("completion", _MESSAGES),
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
_TOP_K_FIELDS = [
    pa.field("top_token_ids", pa.list_(pa.list_(pa.int32()))),
    pa.field("top_logprobs", pa.list_(pa.list_(pa.float16()))),
    pa.field("tail_logprob", pa.list_(pa.float32())),
]
_REJECTION_FIELDS = [
    pa.field("stage", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("attempts", pa.int32()),
]


def completion_schema(*, soft: bool) -> pa.Schema:
    """The schema of data/*.parquet: text alone, or text with token ids, log-probabilities and top-k soft labels."""
    return pa.schema(_TEXT_FIELDS + (_TRACE_FIELDS + _TOP_K_FIELDS if soft else []))


def rejection_schema(*, soft: bool) -> pa.Schema:
    """The schema of rejected/*.parquet: a completion's columns, null where there was none, and why it was rejected."""
    return pa.schema([*completion_schema(soft=soft), *_REJECTION_FIELDS])


def completion_row(completion: Completion, *, soft: bool) -> Row:
    """A completion as a row of `completion_schema(soft=soft)`."""
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
            row["top_token_ids"] = list(trace.soft.token_ids)
            row["top_logprobs"] = list(trace.soft.logprobs)
            row["tail_logprob"] = trace.soft.tail_logprob
    return row


def rejection_row(rejection: Rejection, *, soft: bool) -> Row:
    """A rejection as a row of `rejection_schema(soft=soft)`."""
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
    """Rows as one Arrow batch of exactly `schema`; a column that a row lacks is null."""
    arrays = [pa.array([row.get(field.name) for row in rows], type=field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# ------------------------------------------------------------------------------------------------------------------ rows


def completion_at(rows: pa.RecordBatch | pa.Table, index: int) -> Completion:
    """The completion in row `index` of what `completion_row` made (arrays come out of Arrow's memory, not as objects)."""
    value = _Cell(rows, index)
    trace = None
    if "completion_token_ids" in rows.schema.names and value.present("completion_token_ids"):
        trace = TokenTrace(
            prompt_token_ids=value.array("prompt_token_ids"),
            completion_token_ids=value.array("completion_token_ids"),
            completion_logprobs=value.array("completion_logprobs"),
            soft=_soft_labels_at(value),
        )
    return Completion(
        id=value("id"),
        prompt=prompt_at(rows, index),
        sample=value("sample"),
        text="".join(message["content"] for message in value("completion")),
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


def prompt_at(rows: pa.RecordBatch | pa.Table, index: int) -> Prompt:
    """The prompt in row `index` of a completion's or rejection's rows."""
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


def _soft_labels_at(value: _Cell) -> SoftLabels | None:
    if not value.present("top_token_ids"):
        return None
    time = len(value.array("tail_logprob"))
    return SoftLabels(
        token_ids=value.nested_array("top_token_ids", time),
        logprobs=value.nested_array("top_logprobs", time),
        tail_logprob=value.array("tail_logprob"),
    )


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

    def nested_array(self, name: str, length: int) -> npt.NDArray[Any]:
        flat: npt.NDArray[Any] = self._scalar(name).values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(length, -1)
