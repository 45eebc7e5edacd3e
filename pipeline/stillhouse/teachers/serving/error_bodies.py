"""Parse servers' error bodies: the message, the code, and the HTTP status that the code stands for.

    >>> error = read_error({"error": {"message": "slow down", "code": 429}})     # in a response with status 200
    >>> error.status_of(200), error.text
    (429, 'slow down 429')

Servers report an error in many forms: {"error": {"message", "code", "type", "param"}}, {"error": "text"}, {"object":
"error", "message", "code"}, {"type": "error", "error": {...}}, {"detail": ...}, and, in a response with status 200, an
error next to the choices or inside one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CODES: dict[int, set[str]] = {  # status -> the codes and types that mean the same
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
_STATUSES = {name: status for status, names in _CODES.items() for name in names}
_SETTINGS_CODES = {"unsupported_parameter", "unsupported_value", "unknown_parameter", "invalid_parameter"}
_MESSAGE_PARAMETERS = ("messages", "prompt", "input", "contents")  # request parameters that contain the prompt
_VAGUE = {400, 422, 429}  # statuses that a named code may refine
_SKIPPED_FIELDS = {"logprobs", "usage", "prompt_logprobs"}  # large fields of a response, not searched for errors
_DEPTH = 6


@dataclass(frozen=True)
class ErrorBody:
    """An error as a server reports it."""

    message: str
    code: str = ""  # "502", "invalid_api_key"
    kind: str = ""  # its `type`
    parameter: str = ""  # the request parameter at fault, if named

    @property
    def text(self) -> str:
        """Message, code and type in one string, for display and for pattern matching."""
        return " ".join(part for part in (self.message, self.code, self.kind) if part)

    @property
    def is_settings_error(self) -> bool:
        """Whether the server refuses a parameter that every request has."""
        named = {self.code.lower(), self.kind.lower()} & _SETTINGS_CODES
        return bool(named) and not self.parameter.lower().startswith(_MESSAGE_PARAMETERS)

    def status_of(self, status: int) -> int:
        """Return the status that a code stands for, if it refines a `status` of 200, 400, 422 or 429; else `status`."""
        for name in (self.code, self.kind):
            known = _STATUSES.get(name.lower())
            if known is not None and (status == 200 or (status in _VAGUE and known not in {400, 429, 500})):
                return known
            if status == 200 and name.isdigit() and 400 <= int(name) < 600:
                return int(name)
        return status


def read_error(data: Mapping[str, Any]) -> ErrorBody | None:
    """Return the error that a body reports, at any level; None if it reports none."""
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
    parts = (part for name, part in value.items() if name not in _SKIPPED_FIELDS)
    return next((found for part in parts if (found := _find(part, depth - 1))), None)


def _error(error: Any, parent: Mapping[str, Any] | None = None) -> ErrorBody:
    """Parse an `error` field: an object, or a string with the code next to it."""
    if not isinstance(error, dict):
        parent = parent or {}
        return ErrorBody(str(error), _text(parent.get("code")), _text(parent.get("type")), _text(parent.get("param")))
    message = _text(error.get("message")) or _text(error.get("detail")) or str(error)
    return ErrorBody(message, _text(error.get("code")), _text(error.get("type")), _text(error.get("param")))


def _text(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
