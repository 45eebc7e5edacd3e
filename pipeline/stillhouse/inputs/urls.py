"""Check a server's base URL before anything is sent, and append paths to it.

    >>> base_url = check_base_url(" https://host/v1/?api-version=1 ", "teacher.options.base_url")
    >>> join_path(base_url, "/chat/completions")        # the base URL's query, as Azure's, comes last
    'https://host/v1/chat/completions?api-version=1'

A URL to which no request can be sent is a user error: it is rejected here, with the setting, the value and the fix, and not
retried as if the server were down. Passwords and keys in a URL are rejected and never shown.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from stillhouse.errors import RecipeError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.I)
_ENDPOINT = re.compile(r"(/chat/completions|/completions|/responses|/embeddings|/api/chat|/api/generate)$", re.I)
_SECRET_NAME = re.compile(r"key|token|secret|passw|pwd|sig|auth|credential|^code$|^sas$", re.I)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.I)
_NO_URL_CHARACTERS = set("<>{}|\\^`\"'")


class _Fault(NamedTuple):
    """What is wrong with a base URL, and how to fix it."""

    problem: str
    fix: str


def check_base_url(given: str, setting: str, *, may_hold_secret: bool = False) -> str:
    """Check a base URL and return it without surrounding white space and trailing slashes.

    Args:
        given: the URL from the recipe, the environment or the command line.
        setting: path of the setting, or the environment variable, for messages.
        may_hold_secret: whether the URL may contain secrets; only if nothing stores or shows it.

    Raises:
        RecipeError: no request can be sent to the URL, or it contains a secret.
    """
    url = given.strip()
    if has_secret(url) and not may_hold_secret:
        raise RecipeError(
            "the URL contains a user, a password or a key, and messages and datasets show it",
            setting=setting,
            value=mask_secrets(url),
            fix="remove it from the URL, and set the key in the environment variable for it",
        )
    if fault := _url_fault(url):
        raise RecipeError(fault.problem, setting=setting, value=mask_secrets(url), fix=fault.fix)
    root, mark, query = url.partition("?")
    return root.rstrip("/") + (mark + query if query else "")


def join_path(base_url: str, path: str) -> str:
    """Return the URL of `path` below a base URL; the base URL's query comes last."""
    root, mark, query = base_url.partition("?")
    return f"{root.rstrip('/')}{path}{mark}{query}"


def without_v1(base_url: str) -> str:
    """Return a base URL without a `/v1` at the end of its path."""
    root, mark, query = base_url.partition("?")
    return f"{root.rstrip('/').removesuffix('/v1')}{mark}{query}"


def has_secret(url: str) -> bool:
    """Whether a URL has a user, a password, or a query parameter whose name suggests a secret."""
    address, _, query = url.partition("?")
    names = [name for name, _ in parse_qsl(query.partition("#")[0], keep_blank_values=True)]
    return "@" in address or any(_SECRET_NAME.search(name) for name in names)


def mask_secrets(url: str) -> str:
    """Return a URL for messages: without user and password, and with the query values masked if one may be secret."""
    address, mark, query = url.partition("?")
    if "@" in address:
        scheme = _SCHEME.match(address)
        address = f"{scheme[0] if scheme else ''}{address.rpartition('@')[2]}"
    if has_secret(url):
        query = "&".join(f"{name}=***" for name, _ in parse_qsl(query, keep_blank_values=True))
    return f"{address}{mark}{query}"


def _url_fault(url: str) -> _Fault | None:
    if not url:
        return _Fault("it is empty", "set it to a URL such as http://127.0.0.1:8000/v1")
    if any(character.isspace() or not character.isprintable() for character in url):
        return _Fault("it contains white space or an invisible character", "retype the URL")
    if url[0] in "\"'`":
        return _Fault("it is in quotation marks", "remove them")
    scheme = _SCHEME.match(url)
    if scheme is None and url.lower().startswith(("http:", "https:")):
        return _Fault("two slashes must follow the scheme", "use http:// or https://")
    if scheme is None:
        return _Fault("it has no scheme", f"use http://{url}, or a URL that begins with https://")
    if scheme[1].lower() not in {"http", "https"}:
        return _Fault(f"its scheme is {scheme[1]}", "use http or https, as in http://127.0.0.1:8000/v1")
    if "://" in url[scheme.end() :].partition("?")[0]:
        return _Fault("it contains two URLs", "remove one")
    if "#" in url:
        return _Fault("it has a fragment (the part after #), which is never sent to a server", "remove it")
    if _NO_URL_CHARACTERS & set(url):
        return _Fault(
            "it contains a character that is not allowed in a URL", "write the full URL, without a placeholder"
        )
    return _authority_fault(url) or _path_fault(url)


def _authority_fault(url: str) -> _Fault | None:
    """Return what is wrong with the host or the port."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return _Fault("its host is not valid", "write an IPv6 address in brackets, as in http://[::1]:8000/v1")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return _Fault("its port is not a number from 1 to 65535", "correct the port")
    return _host_fault(host, bracketed=parts.netloc.startswith("["))


def _host_fault(host: str, *, bracketed: bool) -> _Fault | None:
    if not host:
        return _Fault("it has no host", "use a URL such as http://127.0.0.1:8000/v1")
    if bracketed or re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return _Fault(f"{host} is not a valid IP address", "correct the address")
        return None
    if not host.isascii():
        import idna

        try:
            host = idna.encode(host.lower()).decode()
        except idna.IDNAError:
            return _Fault(f"{host} is not a valid host name", "correct the host")
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return _Fault(f"{host[:80]} is not a valid host name", "correct the host")
    return None


def _path_fault(url: str) -> _Fault | None:
    path = url.partition("?")[0].rstrip("/")
    if endpoint := _ENDPOINT.search(path):
        return _Fault(
            f"it ends with {endpoint[0]}, and Stillhouse appends the endpoint to the base URL",
            f"use {path[: endpoint.start()] or url}",
        )
    return None
