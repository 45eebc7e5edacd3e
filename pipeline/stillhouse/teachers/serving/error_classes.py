"""Classify an error that a server reports: it concerns this prompt, the server at this moment, or every request."""

from __future__ import annotations

import re

from stillhouse.errors import TeacherRefused
from stillhouse.teachers.base import AttemptFailed, Refusal
from stillhouse.teachers.serving.context_words import TOO_LONG, TOO_LONG_CODE
from stillhouse.teachers.serving.error_bodies import ErrorBody

_POLICY = re.compile(r"content.?policy|content.?filter|safety|moderation|responsible.?ai", re.I)
_EVERY_PROMPT = re.compile(  # a 400 that every prompt would get, if no code says so
    r"model_not_found|invalid_api_key|unrecognized request argument|api.?key.{0,30}(?:not valid|invalid|expired|not found)"
    r"|(?:incorrect|invalid|missing|no) api.?key"
    r"|(?:credit|account) balance|insufficient (?:balance|credit|fund|quota)|(?:out of|not enough) credits",
    re.I,
)
_FATAL = {
    401: "the API key is not accepted",
    403: "the API key has no permission",
    404: "not found",
    405: "the URL does not accept this kind of request",
    407: "a proxy requires authentication",
}
_PER_PROMPT = {400, 413, 422}  # the only statuses that may concern one prompt
_TRANSIENT = {408, 409, 423, 424, 425}  # statuses below 500 that pass by themselves
_BUSY = {429, 502, 503, 529}  # the server is busy, whichever prompt it gets


def classify_error(status: int, error: ErrorBody, detail: str, *, wait: float, cost_usd: float | None) -> Refusal:
    """Return the refusal of a prompt, or raise for an error that does not concern the prompt.

    Args:
        status: the status of the response, or the one that the error's code stands for.
        error: the parsed error body.
        detail: the error for messages.
        wait: seconds to wait, as requested by the server.
        cost_usd: the cost of the attempt; None if it may have been billed and the cost is not known.

    Raises:
        AttemptFailed: the attempt failed, and another may succeed.
        TeacherRefused: the server answers no request with this key, model and settings.
    """
    if status == 403 and _POLICY.search(error.text):
        return Refusal("policy", detail, suspect="403")
    if status == 500 and TOO_LONG_CODE.search(error.text):  # llama.cpp, and gateways in front of other servers
        return Refusal("too-long", detail, suspect="500")
    _raise_if_fatal(status, error, detail)
    _raise_if_transient(status, detail, wait, cost_usd)
    if error.is_settings_error or _EVERY_PROMPT.search(error.text):
        raise TeacherRefused(
            f"{detail}; every prompt would get this error",
            fix="check teacher.options, label, the API key and the account",
        )
    if status == 200:
        raise AttemptFailed("malformed", detail, cost_usd=cost_usd)
    if status not in _PER_PROMPT:
        raise TeacherRefused(
            f"{detail}; this status does not depend on the prompt", fix="check teacher.options.base_url"
        )
    reason = "too-long" if TOO_LONG.search(error.text) else "policy" if _POLICY.search(error.text) else "bad-request"
    return Refusal(reason, detail, suspect=str(status))


def _raise_if_fatal(status: int, error: ErrorBody, detail: str) -> None:
    """Raise for a status that every request with this key, model and URL would get."""
    if status == 402 or (status == 429 and re.search("insufficient_quota|billing", error.text)):
        raise TeacherRefused(
            f"{detail} (the account has no credit); all answers so far are kept", fix="add credit and run again"
        )
    if status in _FATAL:
        raise TeacherRefused(f"{detail} ({_FATAL[status]})", fix="check teacher.model, the base URL and the API key")


def _raise_if_transient(status: int, detail: str, wait: float, cost_usd: float | None) -> None:
    """Raise for a status that another attempt may not get."""
    if status in _BUSY:
        overloaded = status != 502
        raise AttemptFailed(
            "overloaded", detail, server_at_fault=True, overloaded=overloaded, wait=wait, cost_usd=cost_usd
        )
    if status == 504:  # a gateway timed out; the model behind it may still be generating
        raise AttemptFailed("timeout", detail, overloaded=True, wait=wait, cost_usd=None)
    if status >= 500 or status in _TRANSIENT:
        raise AttemptFailed("server-error", detail, wait=wait, cost_usd=cost_usd)
