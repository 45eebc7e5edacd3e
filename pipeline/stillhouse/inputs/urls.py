"""Check a server's base URL before anything is sent, and append paths to it.

    base_url = check_base_url(given, "teacher.options.base_url")
    join_path(base_url, "/chat/completions")        # the base URL's query, such as Azure's ?api-version=..., comes last

A URL to which no request can be sent is a user error: it is rejected here, with the setting, the value and the fix, and not
retried as if the server were down. Passwords and keys in a URL are rejected and never shown.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl, urlsplit

from stillhouse.errors import RecipeError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.I)
_ENDPOINT = re.compile(r"(/chat/completions|/completions|/responses|/embeddings|/api/chat|/api/generate)$", re.I)
_SECRET_NAME = re.compile(r"key|token|secret|passw|pwd|sig|auth|credential|^code$|^sas$", re.I)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.I)
_NO_URL_CHARACTERS = set("<>{}|\\^`\"'")


def check_base_url(given: str, setting: str, *, may_hold_secret: bool = False) -> str:
    """Check a base URL and return it without surrounding white space and trailing slashes.

    Args:
        given: the URL from the recipe, the environment or the command line.
        setting: the name of the setting, for messages.
        may_hold_secret: whether the URL may contain secrets; only if nothing stores or shows it.

    Raises:
        RecipeError: no request can be sent to the URL, or it contains a secret.
    """
    url = given.strip()
    if has_secret(url) and not may_hold_secret:
        raise RecipeError(
            f"{setting} carries a user, a password or a query with a key ({mask_secrets(url)}), and messages and "
            "datasets show it: leave them out of the URL, and give the key in the environment variable that is meant for it"
        )
    if fault := _fault(url):
        raise RecipeError(f"{setting} is {mask_secrets(url)!r}: {fault}")
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


def _fault(url: str) -> str:
    """Return what is wrong with a base URL and how to fix it; "" if nothing is."""
    if not url:
        return "give a URL such as http://127.0.0.1:8000/v1"
    if any(character.isspace() or not character.isprintable() for character in url):
        return "it holds white space, or a character that cannot be seen: write the URL anew"
    if url[0] in "\"'`":
        return "it stands in quotation marks: leave them out"
    scheme = _SCHEME.match(url)
    if scheme is None:
        mend = "two slashes follow the scheme" if url.lower().startswith(("http:", "https:")) else f"http://{url}"
        return f"it has no scheme: give a URL such as {mend}, or one that begins with https://"
    if scheme[1].lower() not in {"http", "https"}:
        return f"its scheme is {scheme[1]}: give a URL such as http://127.0.0.1:8000/v1, with http or https"
    if "://" in url[scheme.end() :].partition("?")[0]:
        return "it holds two URLs: leave one out"
    if "#" in url:
        return "it has a fragment (what follows #), which no server is sent: leave it out"
    if _NO_URL_CHARACTERS & set(url):
        return "it holds a character that no URL has (a placeholder that was not filled in?): write the URL out"
    return _authority_fault(url) or _path_fault(url)


def _authority_fault(url: str) -> str:
    """Return what is wrong with the host or the port; "" if nothing is."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "its host cannot be read: an IPv6 address stands in brackets, as in http://[::1]:8000/v1"
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return "its port is no number from 1 to 65535"
    return _host_fault(host, bracketed=parts.netloc.startswith("["))


def _host_fault(host: str, *, bracketed: bool) -> str:
    if not host:
        return "it names no host: give a URL such as http://127.0.0.1:8000/v1"
    if bracketed or re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return f"{host} is no IP address"
        return ""
    if not host.isascii():
        import idna

        try:
            host = idna.encode(host.lower()).decode()
        except idna.IDNAError:
            return f"{host} is no name of a host"
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return f"{host[:80]} is no name of a host"
    return ""


def _path_fault(url: str) -> str:
    path = url.partition("?")[0].rstrip("/")
    if endpoint := _ENDPOINT.search(path):
        return (
            f"it ends with {endpoint[0]}, and what is asked is put behind a base URL: leave that off, as in "
            f"{path[: endpoint.start()] or url}"
        )
    return ""
