"""The nouns that flow through every stage; columns.py has the Arrow schemas they are kept in.

    Prompt -> Completion (+ SoftLabels or SampledLabels) -> training batch -> report row
              Rejection

`FORMAT_VERSION` goes up when what is kept changes in a way that an older reader would misread.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "other"]
Split = Literal["train", "validation"]
EncodingName = Literal["top-k", "sampled"]  # of soft labels; pipeline/stillhouse/dataset/encodings has a file for each
Row = dict[str, Any]  # one row, in the form that pyarrow takes; the schemas below are its type


_FINISH_WORDS: dict[str, FinishReason] = {  # what servers and files call it, in lower case
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


def finish_reason_of(word: str) -> FinishReason:
    """The finish reason that a server or a file calls `word`, in any case; `other` for a word that is not known."""
    return _FINISH_WORDS.get(word.lower(), "other")


def ends_its_turn(finish_reason: str | None) -> bool:
    """Whether a completion's text is whole, so that a student should learn the end token after it.

    `stop` says so. A text without a finish reason (None) counts as whole too: a person wrote it, or another project kept it
    as an answer. The other reasons do not: `length` and `content_filter` cut the text off, after `tool_calls` the turn went
    on with a call that the row does not hold, and `other` is not known to be an end.
    """
    return finish_reason in (None, "stop")


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
    """One conversation to be answered, with the gold answer that came with it, if any; a blank one is none."""

    messages: tuple[Message, ...]
    reference: str | None = None

    def __post_init__(self) -> None:
        if self.reference is not None and not self.reference.strip():
            object.__setattr__(self, "reference", None)

    @cached_property
    def id(self) -> str:
        """A hash of the messages: the same conversation has the same id in every file and on every machine."""
        return content_hash([message.as_dict() for message in self.messages])

    @property
    def continues(self) -> bool:
        """Whether the answer goes on from the assistant's last turn, and is no turn of its own."""
        return bool(self.messages) and self.messages[-1].role == "assistant"

    def trimmed(self, answer: str) -> str:
        """An answer without the white space around it; one that goes on from a turn may begin with a space of its own."""
        return answer.rstrip() if self.continues else answer.strip()

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
    seed: int | None = None  # what its random draws begin with, where its answers are drawn at random here
    encoder_decoder: bool = False  # then a row's prompt and completion are two sequences, and no part of a key
    # How it is asked to go on from an assistant's last turn: part of such requests' keys, and of no others. "" where it is
    # sent what it would be sent anyway, None where it cannot go on.
    continuing: str | None = field(default=None, compare=False)

    def shaping(self) -> Mapping[str, object]:
        """What of the identity shapes an answer, and so belongs into a request's key."""
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
class SampledLabels:
    """The teacher's distribution at every completion position, as tokens drawn from it at random with replacement.

    The draws are from the full vocabulary at temperature 1, so count / draws is an unbiased estimate of each probability.
    Position t has the entries offsets[t]:offsets[t + 1]: each drawn token once, with how often it came. The most often
    drawn stand first, and equals by rising id.
    """

    token_ids: npt.NDArray[np.int32]  # (entries,)
    counts: npt.NDArray[np.uint16]  # (entries,), at least 1
    offsets: npt.NDArray[np.int64]  # (time + 1,), from 0 to entries

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.counts.shape or self.offsets[-1] != len(self.token_ids):
            raise ValueError(
                f"sampled labels of unlike lengths: token_ids {self.token_ids.shape}, counts {self.counts.shape}, "
                f"offsets that end at {self.offsets[-1]}"
            )

    @classmethod
    def of(cls, drawn: npt.NDArray[np.integer[Any]]) -> SampledLabels:
        """The labels of so many draws at every position: (time, draws) token ids, in any order."""
        time, draws = drawn.shape
        if draws > np.iinfo(np.uint16).max:
            raise ValueError(f"{draws} draws a position: counts are kept as uint16, draw at most 65,535")
        ordered = np.sort(drawn, axis=1)
        first = np.ones((time, draws), dtype=bool)  # of its token at its position
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        starts = np.flatnonzero(first)
        counts = np.diff(starts, append=time * draws)
        token_ids = ordered.reshape(-1)[starts]
        place = np.lexsort((token_ids, -counts, starts // draws))
        offsets = np.concatenate([[0], np.cumsum(first.sum(axis=1), dtype=np.int64)])
        return cls(token_ids[place].astype(np.int32), counts[place].astype(np.uint16), offsets)

    @property
    def draws(self) -> npt.NDArray[np.int64]:
        """How many draws each position has: (time,)."""
        draws: npt.NDArray[np.int64] = np.diff(
            np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])[self.offsets]
        )
        return draws

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class TokenTrace:
    """The exact tokens of a prompt and its completion, as the teacher saw and wrote them.

    The end-of-turn token, where the teacher wrote one, is the last completion token.
    """

    prompt_token_ids: npt.NDArray[np.int32]  # (prompt time,)
    completion_token_ids: npt.NDArray[np.int32]  # (time,)
    completion_logprobs: npt.NDArray[np.float32]  # (time,), the teacher's own, temperature 1
    soft: SoftLabels | SampledLabels | None = None


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
