"""Check that a vLLM server is the recipe's teacher, and that its log-probabilities are correct.

    checked = await require(api, expected, settings, progress)        # before a run: a failed check refuses the server
    checked = await run_checks(api, expected, settings, progress)           # `stillhouse teacher check`: all, with figures

The checks are: the model's name; whether the server returns as many log-probabilities as the recipe needs; tokenizer and
chat template (by comparing the token ids of the whole vocabulary's text and of a conversation, since a server reports no
hash of its files); and parity. For parity the server scores fixed texts and generates some tokens after each, and the
log-probabilities of every token are compared with those of the same model in transformers, in float32, on this machine.
Only parity detects a server with wrong arithmetic or wrong weights: its text still looks like a model's text.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from pydantic import Field

from stillhouse.errors import TeacherRefused, TeacherUnavailable, TemplateRefused
from stillhouse.models.files import ModelFiles
from stillhouse.progress import Progress, silent
from stillhouse.records import Message, SoftLabels
from stillhouse.settings import Settings
from stillhouse.teachers.base import AttemptFailed, Finding, Refusal
from stillhouse.teachers.serving.openai_api import Content, OpenAiApi
from stillhouse.teachers.serving.vllm_answers import read_generated, read_scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  # 5",
    "Water boils at 100 °C; “naïve” cafés serve it with 42 % more œufs.",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat.",
)
_CONVERSATION = (Message("system", "Be brief."), Message("user", "Why is the sky blue? 2 + 2 = ?"))
_OTHER_FILES = (
    "the server was started with another tokenizer, chat template or revision than those of teacher.model: start it with "
    "those"
)
_PARITY_TOP = 20  # log-probabilities per position that parity compares
_PARITY_GENERATED = 16  # tokens generated after each text; a server computes decoding and prefill differently
_SPEED_REQUESTS, _SPEED_TOKENS = 8, 32


class CheckSettings(Settings):
    """`teacher.options.check`."""

    parity: bool = Field(
        default=True, description="compare with the model in transformers; false if it is too large for this machine"
    )
    kl: float = Field(
        default=0.02, gt=0, description="largest mean KL from float32, nats per token; correct bfloat16: 0.002"
    )
    largest: float = Field(
        default=2.0, gt=0, description="largest difference of a log-probability; correct bfloat16: 0.7"
    )


@dataclass(frozen=True)
class Expected:
    """What the recipe requires of the server."""

    files: ModelFiles
    served_name: str
    k: int | None  # log-probabilities per token, None for text only


@dataclass
class Checked:
    """The results of checking a server."""

    base_url: str
    window: int = 0  # context window: tokens of prompt plus answer
    findings: list[Finding] = field(default_factory=list)

    def add(self, check: str, passed: bool, detail: str) -> bool:
        self.findings.append(Finding(self.base_url, check, passed, detail))
        return passed


async def require(api: OpenAiApi, expected: Expected, settings: CheckSettings, progress: Progress = silent) -> Checked:
    """Check a server before a run, and refuse it if a check fails.

    Raises:
        TeacherUnavailable: the server cannot be reached.
        TeacherRefused: a check failed; the message has the figures and the fix.
    """
    checked = await run_checks(api, expected, settings, progress, speed=False)
    for one in checked.findings:
        if not one.passed:
            error = TeacherUnavailable if one.check == "reachable" else TeacherRefused
            raise error(f"the vLLM server at {checked.base_url} is not the recipe's teacher: {one.check}: {one.detail}")
    return checked


async def run_checks(
    api: OpenAiApi, expected: Expected, settings: CheckSettings, progress: Progress = silent, *, speed: bool = True
) -> Checked:
    """Run the checks in order; stop at the first that fails, since later checks depend on it."""
    checked = Checked(api.base_url)
    steps = [
        _check_model,
        _check_max_logprobs,
        _check_tokenizer,
        *([_check_parity] if settings.parity else []),
        *([_measure_speed] if speed else []),
    ]
    for done, step in enumerate(steps):
        progress(f"Checking {api.base_url}", done, len(steps))
        try:
            if not await step(api, expected, settings, checked):
                break
        except (AttemptFailed, TeacherRefused) as error:
            checked.add("reachable", False, f"{error}: start the server, or check teacher.options.base_urls")
            break
    progress(f"Checking {api.base_url}", len(steps), len(steps))
    return checked


async def _check_model(api: OpenAiApi, expected: Expected, settings: CheckSettings, checked: Checked) -> bool:
    listed = (await _json(api, "/models")).get("data") or []
    names = [str(one.get("id")) for one in listed]
    checked.add("reachable", True, f"serves {', '.join(names)}")
    for one in listed:
        if one.get("id") == expected.served_name:
            checked.window = int(one.get("max_model_len") or 0)
            return checked.add("model", True, f"{expected.served_name}, {checked.window:,} tokens")
    return checked.add(
        "model",
        False,
        f"the server serves {', '.join(names) or 'nothing'}, not {expected.served_name!r}: set teacher.options.served_name "
        "to the model's name on the server, or start the server with the recipe's model",
    )


async def _check_max_logprobs(api: OpenAiApi, expected: Expected, settings: CheckSettings, checked: Checked) -> bool:
    requested = max(expected.k or 0, _PARITY_TOP if settings.parity else 0)
    if not requested:
        return True
    body = {"model": expected.served_name, "prompt": [5], "max_tokens": 1, "logprobs": requested}
    answer = await api.fetch("/completions", body)
    if isinstance(answer, Content):
        return checked.add("max_logprobs", True, f"{requested} log-probabilities per token are returned")
    limit = re.search(r"max allowed: (\d+)", answer.detail)
    return checked.add(
        "max_logprobs",
        False,
        f"the server returns at most {limit[1]} log-probabilities per token, and label.soft.k is {requested}: start it "
        f"with `vllm serve ... --max-logprobs {requested}`, or set label.soft.k lower"
        if limit
        else answer.detail,
    )


async def _check_tokenizer(api: OpenAiApi, expected: Expected, settings: CheckSettings, checked: Checked) -> bool:
    from stillhouse.models.load import load_tokenizer

    tokenizer = load_tokenizer(expected.files.folder)
    vocabulary = tokenizer.get_vocab()
    digest = sha256()
    for text in (*_TEXTS, " ".join(sorted(vocabulary, key=vocabulary.__getitem__))):
        theirs = await _server_token_ids(
            api, {"model": expected.served_name, "prompt": text, "add_special_tokens": False}
        )
        if theirs != tokenizer(text, add_special_tokens=False)["input_ids"]:
            return checked.add("tokenizer", False, f"{text[:30]!r} has other token ids on the server: {_OTHER_FILES}")
        digest.update(np.asarray(theirs, "<i4").tobytes())
    if tokenizer.chat_template is not None:
        conversation, ours = _encode_conversation(tokenizer)
        turns = [turn.as_dict() for turn in conversation]
        theirs = await _server_token_ids(
            api, {"model": expected.served_name, "messages": turns, "add_generation_prompt": True}
        )
        if theirs != ours:
            return checked.add(
                "chat template", False, f"a conversation has other token ids on the server: {_OTHER_FILES}"
            )
        digest.update(np.asarray(theirs, "<i4").tobytes())
    detail = f"the server has the same ids for the text of all {len(vocabulary):,} tokens and for a conversation"
    return checked.add("tokenizer", True, f"{detail} (their sha256 {digest.hexdigest()[:12]}…)")


def _encode_conversation(tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[Message], list[int]]:
    """Return a conversation and its token ids by the local tokenizer; no system turn if the chat template refuses it.

    Raises:
        TeacherUnavailable: the chat template refuses a single user turn too.
    """
    from stillhouse.models.load import encode_prompt

    reason = ""
    for conversation in (_CONVERSATION, _CONVERSATION[1:]):
        try:
            return conversation, encode_prompt(tokenizer, conversation)
        except TemplateRefused as error:
            reason = str(error)
    raise TeacherUnavailable(
        f"its chat template cannot render a single user message: {reason}",
        setting="teacher.model",
        fix="correct the chat template in the model's folder",
    )


async def _check_parity(api: OpenAiApi, expected: Expected, settings: CheckSettings, checked: Checked) -> bool:
    """Compare scored texts (prefill) and generated tokens (decoding): a server computes them in different ways."""
    from stillhouse.models.load import load_tokenizer

    tokenizer = load_tokenizer(expected.files.folder)
    texts = [[int(token) for token in tokenizer(text)["input_ids"]] for text in _TEXTS]
    scored_labels = [await _server_labels(api, expected, ids, generated=False) for ids in texts]
    generated_labels = [await _server_labels(api, expected, ids, generated=True) for ids in texts]
    ours = await asyncio.to_thread(
        _full_logprobs, expected.files, [labels.token_ids for labels in scored_labels + generated_labels]
    )
    kls, largest = [], 0.0
    for labels, full in zip(scored_labels + generated_labels, ours, strict=True):
        listed = np.take_along_axis(full[-len(labels.soft) :], labels.soft.token_ids.astype(np.int64), axis=1)
        theirs = labels.soft.logprobs.astype(np.float64)  # (time, k), natural logarithms
        largest = max(largest, float(np.abs(listed - theirs).max()))
        kls += _kl_with_tail(listed, theirs).tolist()
    kl = float(np.mean(kls))
    passed = kl <= settings.kl and largest <= settings.largest
    figures = f"KL {kl:.2g} nats per token, largest difference {largest:.2g}, over {len(kls)} tokens"
    fix = (
        f" (allowed: {settings.kl:g} and {settings.largest:g}, teacher.options.check). The server's arithmetic or weights "
        "differ from those of teacher.model: start it with `--dtype float32`, without quantization, or from the right "
        "folder"
    )
    return checked.add("parity", passed, figures if passed else figures + fix)


@dataclass(frozen=True)
class _Labels:
    """A server's soft labels of the last tokens of a text."""

    token_ids: list[int]
    soft: SoftLabels


async def _server_labels(api: OpenAiApi, expected: Expected, ids: list[int], *, generated: bool) -> _Labels:
    """Return the soft labels of all tokens of `ids` but the first or, with `generated`, of tokens generated after them."""
    body = {
        "model": expected.served_name,
        "prompt": ids,
        "temperature": 0.0,
        "logprobs": _PARITY_TOP,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if not generated:
        content = await _content(api, body | {"echo": True, "max_tokens": 0})
        parsed = read_scored(content.body, _PARITY_TOP, ids[1:])
    else:
        content = await _content(api, body | {"max_tokens": _PARITY_GENERATED, "ignore_eos": True})
        parsed = read_generated(content.body, _PARITY_TOP)
        ids = [*ids, *parsed.token_ids.tolist()]
    assert parsed.soft is not None
    return _Labels(ids, parsed.soft)


def _kl_with_tail(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return KL(ours || theirs) over the listed tokens and the tail mass as one: (time, k) twice -> (time,), nats."""
    p, q = np.exp(ours), np.exp(theirs)
    tail_p, tail_q = (np.clip(1 - each.sum(axis=1), 1e-9, 1) for each in (p, q))
    kl: np.ndarray = (p * (ours - theirs)).sum(axis=1) + tail_p * np.log(tail_p / tail_q)
    return kl


def _full_logprobs(files: ModelFiles, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return the local model's log softmax at every token but the first: a list of (time, vocabulary)."""
    import torch

    from stillhouse.models.load import load_language_model

    lm = load_language_model(files.folder)
    found = []
    for ids in texts:
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([list(ids)], device=lm.device)).logits[0, :-1]
        found.append(logits.double().log_softmax(dim=-1).cpu().numpy())
    return found


async def _measure_speed(api: OpenAiApi, expected: Expected, settings: CheckSettings, checked: Checked) -> bool:
    plain = await _tokens_per_second(api, expected, None)
    detail = f"{plain:,.0f} tokens per second with {_SPEED_REQUESTS} concurrent requests"
    if expected.k:
        with_logprobs = await _tokens_per_second(api, expected, expected.k)
        detail += f", {with_logprobs:,.0f} with {expected.k} log-probabilities per token"
    return checked.add("speed", True, detail)


async def _tokens_per_second(api: OpenAiApi, expected: Expected, k: int | None) -> float:
    def body(number: int) -> dict[str, Any]:
        request = {
            "model": expected.served_name,
            "prompt": [number + 5, 7, 11],
            "max_tokens": _SPEED_TOKENS,
            "min_tokens": _SPEED_TOKENS,
            "temperature": 1.0,
            "return_tokens_as_token_ids": True,
        }
        return request if k is None else request | {"logprobs": k}

    began = time.perf_counter()
    await asyncio.gather(*(_content(api, body(number)) for number in range(_SPEED_REQUESTS)))
    return _SPEED_REQUESTS * _SPEED_TOKENS / (time.perf_counter() - began)


async def _server_token_ids(api: OpenAiApi, body: dict[str, Any]) -> list[int]:
    answer = await _json(api, "/tokenize", body, outside_v1=True)
    return [int(token) for token in answer.get("tokens") or []]


async def _json(
    api: OpenAiApi, path: str, body: dict[str, Any] | None = None, *, outside_v1: bool = False
) -> dict[str, Any]:
    content = await api.fetch(path, body, outside_v1=outside_v1)
    if isinstance(content, Refusal):
        raise TeacherRefused(content.detail)
    try:
        data = orjson.loads(content.body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise TeacherRefused(f"{api.base_url}{path} returns no JSON object, so this is not a vLLM server")
    return data


async def _content(api: OpenAiApi, body: dict[str, Any]) -> Content:
    content = await api.fetch("/completions", body)
    if isinstance(content, Refusal):
        raise TeacherRefused(content.detail)
    return content
