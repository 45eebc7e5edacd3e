"""Classify a request that got no status: it was not sent, the server was not reached, or the connection broke.

    raise connection_error(error, base_url, proxy, read_seconds, sanitize) from None

A request that never left this machine is the fault of the URL, the certificate or the proxy: it is not retried, and no
prompt is rejected for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stillhouse.errors import TeacherRefused
from stillhouse.teachers.base import AttemptFailed
from stillhouse.teachers.serving.environment import Proxy, bypass_advice

_TLS_FAILURE = re.compile(
    r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNKNOWN_PROTOCOL|HTTP_REQUEST", re.I
)  # in OpenSSL's messages
_TRANSIENT = {408, 425, 429}  # transient statuses of a proxy, below 500


def connection_error(
    error: Exception, base_url: str, proxy: Proxy | None, read_seconds: float, sanitize: Callable[[str], str]
) -> AttemptFailed | TeacherRefused:
    """Return the error to raise for a request that got no status.

    Args:
        error: an exception of httpx2 or aiohttp.
        base_url: the server's base URL.
        proxy: the proxy that the request would use; None without one.
        read_seconds: the client's read timeout.
        sanitize: sanitizes text of other programs for a message.
    """
    import aiohttp
    import httpx2

    # httpx's exception is too coarse: a connection that broke after the request was sent is also a ConnectTimeout.
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    cause_text = sanitize(str(cause)) or type(cause).__name__
    through = f" through {proxy}" if proxy else ""
    server = base_url + through
    advice = f"if the server can be reached without the proxy, {bypass_advice(base_url)}" if proxy else ""
    suffix = f"; {advice}" if advice else ""
    if isinstance(cause, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, httpx2.UnsupportedProtocol)):
        return TeacherRefused(
            f"no request can be sent to {server} ({cause_text}); nothing was sent", fix="correct the URL"
        )
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        refused = (
            f"{proxy or 'a proxy'} answered {cause.status} to a request for {base_url} ({sanitize(cause.message)})"
        )
        if cause.status < 500 and cause.status not in _TRANSIENT:
            return TeacherRefused(
                f"{refused}; nothing was sent to the server",
                fix="; ".join(filter(None, ["correct the proxy's settings", advice])),
            )
        return AttemptFailed("unreachable", refused + suffix, server_at_fault=True, overloaded=True)
    if isinstance(cause, aiohttp.ClientConnectorCertificateError) or _TLS_FAILURE.search(cause_text):
        return TeacherRefused(
            f"no trusted connection to {server} could be made ({cause_text}); nothing was sent",
            fix="set SSL_CERT_FILE to the authority of its certificate, or use an http:// URL if the server has no TLS",
        )
    if isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return AttemptFailed(
            "unreachable", f"{server} cannot be reached ({cause_text}){suffix}", server_at_fault=True, overloaded=True
        )
    if isinstance(error, httpx2.ReadTimeout):
        return AttemptFailed("timeout", f"no answer in {read_seconds:g} s{through}", overloaded=True, cost_usd=None)
    return AttemptFailed(
        "cut-off", f"the connection to {server} broke before the answer was complete ({cause_text})", cost_usd=None
    )
