"""The records that every stage passes on; columns.py has the Arrow schemas in which they are stored.

    Prompt -> Completion (+ SoftLabels or SampledLabels) -> training batch -> report row
              Rejection

`FORMAT_VERSION` is incremented when the stored format changes in a way that an older reader would misread.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1
RECIPE_FILE = "recipe.yaml"  # the recipe, in the folder of what was made from it: a version, a part, a student

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "other"]
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)
EncodingName = Literal["top-k", "sampled"]  # of soft labels; one module each in dataset/encodings
Row = dict[str, Any]  # one row, as pyarrow takes it; the schemas in columns.py are its type


_FINISH_WORDS: dict[str, FinishReason] = {  # names used by servers and files, in lower case
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "complete": "stop",
    "completed": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "recitation": "content_filter",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}


def utc_now() -> str:
    """Return the current time to the second, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def finish_reason_of(word: str) -> FinishReason:
    """Return the finish reason for a server's or a file's `word`, in any case; `other` if the word is not known."""
    return _FINISH_WORDS.get(word.lower(), "other")


def is_complete(finish_reason: str | None) -> bool:
    """Whether a completion's text is complete, so that a student should learn the end token after it.

    True for `stop`. A text without a finish reason (None) counts as complete too: a person wrote it, or another project
    stored it as an answer. All other reasons are False: `length` and `content_filter` truncate the text, after `tool_calls`
    the turn continued with a call that the row does not contain, and `other` is not known to be an end.
    """
    return finish_reason in (None, "stop")


def content_hash(value: object) -> str:
    """Return 32 hex digits that identify a JSON-like value by content (sha256 of canonical JSON, truncated to 128 bits).

    Mapping entries that are None are left out, so a setting added later does not change existing hashes.
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
    """A conversation to answer, with its reference (gold answer) if it has one; a blank reference becomes None."""

    messages: tuple[Message, ...]
    reference: str | None = None
    tokens_to_score: tuple[int, ...] | None = None  # in score mode: a completion as the teacher's token ids

    def __post_init__(self) -> None:
        if self.reference is not None and not self.reference.strip():
            object.__setattr__(self, "reference", None)

    @cached_property
    def id(self) -> str:
        """A hash of the messages: a conversation has the same id in every file and on every machine."""
        return content_hash([message.as_dict() for message in self.messages])

    @property
    def continues(self) -> bool:
        """Whether the answer continues the last assistant turn instead of starting a new turn."""
        return bool(self.messages) and self.messages[-1].role == "assistant"

    def trimmed(self, answer: str) -> str:
        """Strip white space from an answer; if it continues a turn, leading space is part of it and stays."""
        return answer.rstrip() if self.continues else answer.strip()

    @property
    def text(self) -> str:
        """The conversation without the system message; used to compare prompts."""
        return "\n".join(message.content for message in self.messages if message.role != "system")


@dataclass(frozen=True)
class TeacherIdentity:
    """The identity of the teacher that gave the labels. A field is None if this kind of teacher does not know it.

    `content_sha256` identifies local weights by content and replaces `model` and `revision` in request keys: a moved folder
    is the same teacher, and a retrained one is another.
    """

    kind: str
    model: str
    revision: str | None = None
    endpoint: str | None = None
    fingerprint: str | None = None  # as the server reports it; stored, but not part of a key
    content_sha256: str | None = None
    options_sha256: str | None = None  # hash of the kind's options that shape an answer
    tokenizer_sha256: str | None = None
    chat_template_sha256: str | None = None
    vocabulary_size: int | None = None
    seed: int | None = None  # seed of its random draws, if it samples in this process
    encoder_decoder: bool = False  # its rows are two sequences, prompt and completion; not part of a key
    # How it is made to continue the last assistant turn: part of the keys of such requests only. "" if the request needs
    # no change, None if the teacher cannot continue a turn.
    continuing: str | None = field(default=None, compare=False)

    def shaping(self) -> Mapping[str, object]:
        """Return the fields that shape an answer and so are part of a request's key."""
        if self.content_sha256:
            return {
                "kind": self.kind,
                "content": self.content_sha256,
                "options": self.options_sha256,
                "seed": self.seed,
            }
        return {
            "kind": self.kind,
            "model": self.model,
            "revision": self.revision,
            "endpoint": self.endpoint,
            "options": self.options_sha256,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class SoftLabels:
    """The teacher's next-token distribution at every completion position, as its k most likely tokens.

    `logprobs` are natural logarithms of the teacher's probabilities at temperature 1, normalized over the full vocabulary;
    `tail_logprob` is the logarithm of the tail mass, the mass of all tokens not listed; -inf if all are listed. Rows are
    sorted from the most to the least likely token.
    """

    token_ids: npt.NDArray[np.int32]  # (time, k)
    logprobs: npt.NDArray[np.float16]  # (time, k)
    tail_logprob: npt.NDArray[np.float32]  # (time,)

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.logprobs.shape or self.token_ids.shape[:1] != self.tail_logprob.shape:
            raise ValueError(
                f"the shapes of soft labels differ: token_ids {self.token_ids.shape}, logprobs {self.logprobs.shape}, "
                f"tail_logprob {self.tail_logprob.shape}"
            )

    @property
    def k(self) -> int:
        return int(self.token_ids.shape[1])

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])


@dataclass(frozen=True)
class SampledLabels:
    """The teacher's distribution at every completion position, as tokens sampled from it with replacement.

    Samples are from the full vocabulary at temperature 1, so count / draws is an unbiased estimate of each probability.
    Position t has the entries offsets[t]:offsets[t + 1]: each sampled token once, with its count, sorted by falling count
    and then by rising id.
    """

    token_ids: npt.NDArray[np.int32]  # (entries,)
    counts: npt.NDArray[np.uint16]  # (entries,), at least 1
    offsets: npt.NDArray[np.int64]  # (time + 1,), from 0 to entries

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.counts.shape or self.offsets[-1] != len(self.token_ids):
            raise ValueError(
                f"the lengths of sampled labels differ: token_ids {self.token_ids.shape}, counts {self.counts.shape}, "
                f"offsets end at {self.offsets[-1]}"
            )

    @classmethod
    def from_draws(cls, drawn: npt.NDArray[np.integer[Any]]) -> SampledLabels:
        """Return labels from the same number of draws at every position: (time, draws) token ids, in any order."""
        time, draws = drawn.shape
        if draws > np.iinfo(np.uint16).max:
            raise ValueError(f"{draws} draws per position: counts are stored as uint16, so draw at most 65,535")
        ordered = np.sort(drawn, axis=1)
        first = np.ones((time, draws), dtype=bool)  # marks the first of equal tokens at a position
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        starts = np.flatnonzero(first)
        counts = np.diff(starts, append=time * draws)
        token_ids = ordered.reshape(-1)[starts]
        place = np.lexsort((token_ids, -counts, starts // draws))
        offsets = np.concatenate([[0], np.cumsum(first.sum(axis=1), dtype=np.int64)])
        return cls(token_ids[place].astype(np.int32), counts[place].astype(np.uint16), offsets)

    @property
    def draws(self) -> npt.NDArray[np.int64]:
        """The number of draws at each position: (time,)."""
        draws: npt.NDArray[np.int64] = np.diff(
            np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])[self.offsets]
        )
        return draws

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class TokenTrace:
    """The exact tokens of a prompt and its completion, as the teacher read and generated them.

    The end-of-turn token, if the teacher generated one, is the last completion token.
    """

    prompt_token_ids: npt.NDArray[np.int32]  # (prompt time,)
    completion_token_ids: npt.NDArray[np.int32]  # (time,)
    completion_logprobs: npt.NDArray[np.float32]  # (time,), the teacher's, at temperature 1
    soft: SoftLabels | SampledLabels | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer as an API returns it: identified by its text, without an id."""

    token: str
    logprob: float  # natural logarithm
    top: tuple[tuple[str, float], ...] = ()  # the most likely tokens at this position, with their log-probabilities


@dataclass(frozen=True)
class Completion:
    """One teacher answer to one prompt. Token counts are None if the server did not report them."""

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
    reasoning: str | None = None  # the reasoning before the answer, if the server returns it
    token_logprobs: tuple[TokenLogprob, ...] | None = None  # from an API that returns tokens as text


@dataclass(frozen=True)
class Rejection:
    """A prompt without a usable completion, with the reason; any paid completion is stored with it."""

    id: str
    prompt: Prompt
    sample: int
    stage: str  # "teacher", or "quality"
    reason: str  # one or two words, used as a counting key
    detail: str
    attempts: int = 1
    completion: Completion | None = None
    cost_usd: float | None = None  # cost of billed attempts that gave no completion
