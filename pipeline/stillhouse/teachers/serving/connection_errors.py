"""Classify a request that got no status: it was not sent, the server was not reached, or the connection broke.

    raise without_status(error, base_url, proxy, read_seconds, sanitize) from None

A request that never left this machine is the fault of the URL, the certificate or the proxy: it is not retried, and no
prompt is rejected for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stillhouse.errors import TeacherRefused
from stillhouse.teachers.base import AttemptFailed
from stillhouse.teachers.serving.environment import Proxy, around

_NO_TLS = re.compile(
    r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNKNOWN_PROTOCOL|HTTP_REQUEST", re.I
)  # in OpenSSL's messages
_PASSING = {408, 425, 429}  # transient statuses of a proxy, below 500


def without_status(
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
    said = sanitize(str(cause)) or type(cause).__name__
    through = f" through {proxy}" if proxy else ""
    where = base_url + through
    mend = f". If the server is reached without the proxy, {around(base_url)}" if proxy else ""
    if isinstance(cause, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, httpx2.UnsupportedProtocol)):
        return TeacherRefused(f"{where} cannot be asked ({said}). Nothing was sent: correct the URL.")
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        refused = (
            f"{proxy or 'a proxy'} said {cause.status} when it was asked for {base_url} ({sanitize(cause.message)})"
        )
        if cause.status < 500 and cause.status not in _PASSING:
            return TeacherRefused(f"{refused}. Nothing was sent to the server: correct the proxy's settings{mend}.")
        return AttemptFailed("unreachable", refused + mend, server_at_fault=True, overloaded=True)
    if isinstance(cause, aiohttp.ClientConnectorCertificateError) or _NO_TLS.search(said):
        return TeacherRefused(
            f"{where} offers no connection that can be trusted ({said}). Nothing was sent: name the authority of its "
            "certificate in SSL_CERT_FILE, or give an http:// URL if the server speaks no TLS."
        )
    if isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return AttemptFailed(
            "unreachable", f"{where} cannot be reached ({said}){mend}", server_at_fault=True, overloaded=True
        )
    if isinstance(error, httpx2.ReadTimeout):
        return AttemptFailed("timeout", f"no answer in {read_seconds:g} s{through}", overloaded=True, cost_usd=None)
    return AttemptFailed(
        "cut-off", f"the connection to {where} broke before the answer was whole ({said})", cost_usd=None
    )
