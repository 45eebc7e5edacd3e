"""Read what servers say when something is wrong: the words, the code, and the status that the code stands for.

    said = read_error(data)                 # of an error status, or of an answer with status 200
    said.status_of(200), said.words

Servers say the same thing in many forms: {"error": {"message", "code", "type", "param"}}, {"error": "words"}, {"object":
"error", "message", "code"}, {"type": "error", "error": {...}}, {"detail": ...}, and, inside an answer with status 200, an
error beside the choices or within one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAMED: dict[int, set[str]] = {  # codes and types in words, and the status that says the same
    400: {"context_length_exceeded", "invalid_request_error", "bad_request", "content_policy_violation"},
    401: {"invalid_api_key", "authentication_error", "invalid_authentication", "unauthorized", "unauthenticated"},
    402: {
        "insufficient_quota",
        "insufficient_balance",
        "insufficient_credits",
        "insufficient_funds",
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "payment_required",
    },
    403: {"permission_error", "permission_denied", "access_denied", "forbidden", "account_deactivated"},
    404: {"model_not_found", "not_found_error", "deploymentnotfound", "model_not_available"},
    429: {"rate_limit_exceeded", "rate_limit_error", "resource_exhausted", "too_many_requests"},
    500: {"server_error", "internal_error", "internal_server_error", "api_error"},
    503: {"overloaded_error", "overloaded", "unavailable", "service_unavailable", "engine_overloaded"},
    504: {"timeout", "timeout_error", "gateway_timeout", "deadline_exceeded"},
}
_STATUSES = {name: status for status, names in _NAMED.items() for name in names}
_OF_SETTINGS = {"unsupported_parameter", "unsupported_value", "unknown_parameter", "invalid_parameter"}
_OF_MESSAGES = ("messages", "prompt", "input", "contents")  # the parameters of a request that are the prompt
_VAGUE = {400, 422, 429}  # statuses that a code in words may make more precise
_WITHOUT_ERRORS = {"logprobs", "usage", "prompt_logprobs"}  # large parts of an answer
_DEPTH = 6


@dataclass(frozen=True)
class ErrorBody:
    """An error in a server's words."""

    message: str
    code: str = ""  # "502", "invalid_api_key"
    kind: str = ""  # its `type`
    parameter: str = ""  # of the request, where it names one

    @property
    def words(self) -> str:
        """All of it, for people and for patterns."""
        return " ".join(part for part in (self.message, self.code, self.kind) if part)

    @property
    def is_of_settings(self) -> bool:
        """Whether a parameter is refused that every request has."""
        named = {self.code.lower(), self.kind.lower()} & _OF_SETTINGS
        return bool(named) and not self.parameter.lower().startswith(_OF_MESSAGES)

    def status_of(self, status: int) -> int:
        """The status that this is: a code says more than 200, 400, 422 or 429 does. 200 where it says nothing."""
        for name in (self.code, self.kind):
            known = _STATUSES.get(name.lower())
            if known is not None and (status == 200 or (status in _VAGUE and known not in {400, 429, 500})):
                return known
            if status == 200 and name.isdigit() and 400 <= int(name) < 600:
                return int(name)
        return status


def read_error(data: Mapping[str, Any]) -> ErrorBody | None:
    """The error that a body tells of, wherever in it; None where it tells of none."""
    if data.get("object") == "error":
        return _error(data)
    return _find(data, _DEPTH)


def _find(value: Any, depth: int) -> ErrorBody | None:
    if depth == 0:
        return None
    if isinstance(value, list):
        return next((found for item in value if (found := _find(item, depth - 1))), None)
    if not isinstance(value, dict):
        return None
    if error := value.get("error"):
        return _error(error, value)
    parts = (part for name, part in value.items() if name not in _WITHOUT_ERRORS)
    return next((found for part in parts if (found := _find(part, depth - 1))), None)


def _error(error: Any, beside: Mapping[str, Any] | None = None) -> ErrorBody:
    """An `error` field: an object, or words with the code beside them."""
    if not isinstance(error, dict):
        beside = beside or {}
        return ErrorBody(str(error), _text(beside.get("code")), _text(beside.get("type")), _text(beside.get("param")))
    message = _text(error.get("message")) or _text(error.get("detail")) or str(error)
    return ErrorBody(message, _text(error.get("code")), _text(error.get("type")), _text(error.get("param")))


def _text(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
