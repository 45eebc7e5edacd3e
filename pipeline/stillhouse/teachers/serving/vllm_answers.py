"""Parse a response of vLLM's /v1/completions (one prompt, n = 1) into arrays.

    read_generated(content, k=50).soft                      # {"logprobs": 50, "return_token_ids": true, ...}
    read_scored(content, 50, completion=token_ids).soft     # {"echo": true, "max_tokens": 0, "logprobs": 50, ...}

Both requests also set "return_tokens_as_token_ids". Nearly all of a response is `top_logprobs`, about 2 kB per token at
k = 50:

    "top_logprobs": [{"token_id:504": -1.86, "token_id:60": -1.96, ...}, ...]

These entries are not turned into Python objects: NumPy finds the quotes of all keys, and Arrow parses the numbers next to
them in place. If the layout is not as expected, orjson parses the response, it is serialized again, and then read or
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from stillhouse.records import SoftLabels

TAIL_FLOOR = 1e-7  # least tail mass: 1 - sum is accurate to about 1e-6, see `_soft_labels`
_MAX_SUM = 1.01  # a larger sum of probabilities is refused
_FLOAT16_MIN = float(np.finfo(np.float16).min)
_KEY = b'"token_id:'
_FIRST = (b"{", b"null,{", b"null, {", b"null")  # bytes allowed before the first key
_TOP_LOGPROBS = re.compile(rb'"top_logprobs"\s*:\s*\[')  # quotes inside a JSON string are escaped, so this is a key
_PROMPT_LOGPROBS, _AFTER_PROMPT_LOGPROBS = b'"prompt_logprobs":[', b'],"prompt_token_ids":'

_Ids: TypeAlias = npt.NDArray[np.int32]
_Places: TypeAlias = npt.NDArray[np.int32]  # byte offsets


@dataclass(frozen=True)
class VllmAnswer:
    """One answer; its soft labels are None if no log-probabilities were requested."""

    text: str
    finish_reason: str | None  # in the server's words
    prompt_token_ids: _Ids | None  # None if they were not requested
    token_ids: _Ids  # (time,) completion tokens, the end token included
    logprobs: npt.NDArray[np.float32] | None  # (time,) of those tokens
    soft: SoftLabels | None  # (time, k)
    usage: Mapping[str, Any]
    fingerprint: str | None


def read_generated(content: bytes, k: int | None) -> VllmAnswer:
    """Parse a generated completion; `k` is the request's `logprobs`, None if it was not set.

    Raises:
        ValueError: the response cannot be parsed, or does not answer such a request.
    """
    response = _open_response(content)
    token_ids = _token_ids(response.choice.get("token_ids"), "token_ids")
    if k is None:
        return response.answer(token_ids, None)
    if len(response.listed("token_logprobs")) != len(token_ids):
        raise ValueError("token_ids and token_logprobs differ in length")
    return response.answer(token_ids, k)


def read_scored(content: bytes, k: int, completion: Sequence[int]) -> VllmAnswer:
    """Parse the scores of the tokens of `completion`, the last tokens of an echoed prompt; their number is (time).

    Raises:
        ValueError: the response cannot be parsed, or does not answer such a request.
    """
    response = _open_response(content)
    token_ids = _token_ids(list(completion), "completion")
    tokens = response.listed("tokens")
    begin = len(tokens) - len(token_ids)
    if begin < 0 or tokens[begin:] != [f"token_id:{token}" for token in token_ids.tolist()]:
        raise ValueError("the last scored tokens are not those of the completion")
    if len(response.listed("token_logprobs")) != len(tokens):
        raise ValueError("tokens and token_logprobs differ in length")
    return response.answer(token_ids, k, prompt_length=begin)


@dataclass(frozen=True)
class _Response:
    """A response as JSON. `span` is the byte range of its top_logprobs in `content`; None if `choice` contains them."""

    content: bytes
    data: Mapping[str, Any]
    choice: Mapping[str, Any]
    span: tuple[int, int] | None

    def listed(self, name: str) -> list[Any]:
        logprobs = self.choice.get("logprobs")
        found = logprobs.get(name) if isinstance(logprobs, dict) else None
        if not isinstance(found, list):
            raise ValueError(f"{name} is missing")
        return found

    def answer(self, token_ids: _Ids, k: int | None, prompt_length: int | None = None) -> VllmAnswer:
        """Return the answer with the soft labels of `token_ids`, which are the last tokens of the response."""
        text, reason, usage = self.choice.get("text"), self.choice.get("finish_reason"), self.data.get("usage")
        if not isinstance(text, str) or not isinstance(reason, str | None) or not isinstance(usage, dict):
            raise ValueError("text, finish_reason or usage is missing")
        prompt, logprobs, soft = self.choice.get("prompt_token_ids"), None, None
        prompt_ids = None if prompt is None else _token_ids(prompt, "prompt_token_ids")[:prompt_length]
        if k is not None:
            token_logprobs = self.listed("token_logprobs")
            chosen = _numbers(token_logprobs[len(token_logprobs) - len(token_ids) :], "iuf", "token_logprobs")
            entries = self._entries(token_ids, len(token_logprobs))
            if not np.array_equal(entries.logprobs[entries.starts], chosen):
                raise ValueError("token_logprobs and top_logprobs contradict each other")
            logprobs, soft = chosen.astype(np.float32), _soft_labels(entries, k)
        return VllmAnswer(
            text, reason, prompt_ids, token_ids, logprobs, soft, usage, self.data.get("system_fingerprint")
        )

    def _entries(self, token_ids: _Ids, total: int) -> _Entries:
        found = _parse_in_place(self.content, self.span, token_ids, total) if self.span else None
        if found is not None:
            return found
        rows = (_parse_response(self.content) if self.span else self).listed("top_logprobs")
        if len(rows) != total:
            raise ValueError(f"{total} tokens with {len(rows)} rows of top_logprobs")
        body = _reserialize(rows[total - len(token_ids) :], token_ids)
        found = _parse_in_place(body, (1, len(body) - 1), token_ids, len(token_ids))
        if found is None:
            raise ValueError("top_logprobs are not finite numbers with keys token_id:N")
        return found


def _open_response(content: bytes) -> _Response:
    """Parse everything except top_logprobs, if these can be separated; else parse everything."""
    key = _TOP_LOGPROBS.search(content)
    end = content.find(b"]", key.end()) if key else -1
    if key is None or end < 0:
        return _parse_response(content)
    remainder = content[end:]
    if (prompt := remainder.find(_PROMPT_LOGPROBS)) >= 0:  # an echo repeats it all in here, twice as large
        after = remainder.find(_AFTER_PROMPT_LOGPROBS, prompt)
        remainder = remainder[: prompt + len(_PROMPT_LOGPROBS)] + remainder[after:] if after >= 0 else remainder
    try:
        response = _parse_response(content, content[: key.end()] + remainder, (key.end(), end))
        return response if response.listed("top_logprobs") == [] else _parse_response(content)
    except ValueError:  # the bracket was inside a key
        return _parse_response(content)


def _parse_response(content: bytes, json: bytes | None = None, span: tuple[int, int] | None = None) -> _Response:
    data = orjson.loads(content if json is None else json)  # raises a ValueError
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError("the response has not exactly one choice")
    return _Response(content, data, choices[0], span)


def _reserialize(rows: list[Any], token_ids: _Ids) -> bytes:
    """Serialize the rows as JSON that `_parse_in_place` can parse, each row with its token of `token_ids` first."""
    names = [f"token_id:{token}" for token in token_ids.tolist()]
    for row, name in zip(rows, names, strict=True):
        if not isinstance(row, dict) or name not in row:
            raise ValueError(f"{name} is not in its row of top_logprobs")
    return orjson.dumps([{name: row[name], **row} for row, name in zip(rows, names, strict=True)])


@dataclass(frozen=True)
class _Entries:
    """The entries of all rows of top_logprobs, concatenated."""

    token_ids: _Ids  # (entries,)
    logprobs: npt.NDArray[np.float64]  # (entries,)
    starts: npt.NDArray[np.intp]  # (time,) each row's first entry


def _parse_in_place(content: bytes, span: tuple[int, int], token_ids: _Ids, total: int) -> _Entries | None:
    """Parse the last rows of `span`, which has `total` rows; return None if the layout is not as expected.

    Expected is JSON with one space after every colon and comma, or none; each row starts with its token of `token_ids`, and
    the very first row may be null.
    """
    begin, end = span
    time = len(token_ids)
    text = np.frombuffer(content, np.uint8)
    quotes = np.flatnonzero(text[begin:end] == ord('"')).astype(np.int32) + np.int32(begin)
    if len(quotes) % 2:
        return None
    opening, closing = quotes[0::2].copy(), quotes[1::2].copy()  # (entries,) of each key
    before = text.take(opening - 1)
    starts = np.flatnonzero(before == ord("{"))
    first = content[begin : opening[0]] if len(opening) else b"null"
    if first not in _FIRST or not len(starts) == total - first.startswith(b"null") >= time:
        return None
    if not time:
        return _Entries(token_ids, np.zeros(0), starts[:0])
    skipped = starts[-time]  # number of entries of the echoed prompt
    opening, closing, before, starts = opening[skipped:], closing[skipped:], before[skipped:], starts[-time:] - skipped

    space = int(content[closing[0] + 2] == ord(" "))
    after_comma, after_colon = (ord(" "), ord(" ")) if space else (ord(","), ord(":"))
    begins = closing + np.int32(2 + space)  # byte offsets of the log-probabilities
    ends = np.append(opening[1:] - np.int32(1 + space), np.int32(end - 1))
    ends[starts[1:] - 1] -= 2  # these are followed by "},{" instead of ","
    inner = before == after_comma
    inner[starts] = text.take(opening[starts] - 2) == after_comma
    inner[0] = content[end - 1] == ord("}")
    ids = opening + np.int32(len(_KEY))
    if not (inner.all() and (text.take(begins - 1) == after_colon).all() and (ids < closing).all()):
        return None
    keys = text.take(opening[starts, None] + np.arange(len(_KEY)))  # (time, 10)
    if not ((begins < ends).all() and (keys == np.frombuffer(_KEY, np.uint8)).all()):
        return None
    try:
        found, logprobs = _cast(content, ids, closing, pa.int32()), _cast(content, begins, ends, pa.float64())
    except pa.ArrowInvalid:
        return None
    is_valid = np.array_equal(found[starts], token_ids) and (found >= 0).all() and np.isfinite(logprobs).all()
    return _Entries(found, logprobs, starts) if is_valid else None


def _cast(content: bytes, begins: _Places, ends: _Places, kind: pa.DataType) -> npt.NDArray[Any]:
    """Parse content[begins[i]:ends[i]] as numbers, with an Arrow array over the bytes in which the gaps are null."""
    count = len(begins)
    offsets = np.empty(2 * count + 1, np.int32)
    offsets[0:-1:2], offsets[1::2], offsets[-1] = begins, ends, ends[-1]
    valid = np.full((count + 3) // 4, 0b01010101, np.uint8)
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(content)]
    numbers = pa.Array.from_buffers(pa.string(), 2 * count, buffers).cast(kind)
    return np.frombuffer(numbers.buffers()[1], kind.to_pandas_dtype())[0 : 2 * count : 2]


def _soft_labels(entries: _Entries, k: int) -> SoftLabels:
    """Return the k most likely tokens of each row, sorted, and the tail mass; ties keep the server's order.

    The tail is log(1 - sum exp(logprobs)), in float64 from the numbers as sent. Those are float32: rounding them moves the
    sum by at most 2**-24 * sum p |log p|, 4e-7 at k = 100, and the server's own normalizer by about as much. So a tail
    below 1e-6 is mostly noise; it is clamped to at least `TAIL_FLOOR`, and to the probability of a chosen token outside the
    top k.
    """
    lengths = np.diff(entries.starts, append=len(entries.token_ids))
    odd = np.flatnonzero((lengths < k) | (lengths > k + 1))
    if len(odd):
        raise ValueError(f"position {odd[0]} has {lengths[odd[0]]} log-probabilities, and {k} were requested")
    listed = np.arange(k + 1) < lengths[:, None]  # (time, k + 1)
    token_ids = np.zeros(listed.shape, np.int32)
    logprobs = np.full(listed.shape, -np.inf)
    token_ids[listed], logprobs[listed] = entries.token_ids, entries.logprobs
    order = np.argsort(-logprobs, axis=1, kind="stable") + np.arange(0, listed.size, k + 1)[:, None]
    logprobs = logprobs.take(order)
    mass = np.exp(np.minimum(logprobs, 1.0))
    if (mass.sum(axis=1) > _MAX_SUM).any():
        raise ValueError("the probabilities at one position add up to more than 1")
    tail = np.maximum(1.0 - mass[:, :k].sum(axis=1), np.maximum(mass[:, k], TAIL_FLOOR))
    return SoftLabels(
        token_ids=token_ids.take(order[:, :k]),
        logprobs=np.maximum(logprobs[:, :k], _FLOAT16_MIN).astype(np.float16),
        tail_logprob=np.log(tail).astype(np.float32),
    )


def _token_ids(value: Any, name: str) -> _Ids:
    array = _numbers(value, "iu", name)
    if ((array < 0) | (array > np.iinfo(np.int32).max)).any():
        raise ValueError(f"{name} has a number that is not a token id")
    return array.astype(np.int32)


def _numbers(value: Any, kinds: str, name: str) -> npt.NDArray[Any]:
    """Convert a list of finite numbers of these NumPy kinds to an array."""
    array = np.array(value if isinstance(value, list) else None)
    if array.ndim == 1 and not array.size:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in kinds or not np.isfinite(array).all():
        raise ValueError(f"{name} is not a list of finite numbers")
    return array
