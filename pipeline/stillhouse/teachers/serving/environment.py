"""Read a server's settings from the environment: its API key, and the proxy in between.

    key = read_key("OPENAI_API_KEY")                    # None if it is not set
    proxy = find_proxy(http_client, base_url)           # None if requests go directly to the server

A value that a request cannot carry is refused before anything is sent, and never shown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import SecretStr

from stillhouse.errors import RecipeError, TeacherRefused
from stillhouse.inputs.urls import mask_secrets

if TYPE_CHECKING:
    import httpx2

HEADER_VARIABLES = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # sent as headers by the `openai` package, besides the key


def read_key(variable: str) -> SecretStr | None:
    """Return the API key in an environment variable; None if it is not set.

    Raises:
        RecipeError: the value contains characters that a header cannot carry.
    """
    value = read_header(variable, "API key")
    return SecretStr(value) if value else None


def read_header(variable: str, what: str = "name") -> str:
    """Return an environment variable to be sent as a header, stripped of white space; "" if it is not set.

    Raises:
        RecipeError: the value contains characters that a header cannot carry.
    """
    value = os.environ.get(variable, "").strip()
    if value.isascii() and value.isprintable():
        return value
    raise RecipeError(
        f"the environment variable contains characters that no {what} has (perhaps a line break or a typographic dash)",
        setting=variable,
        fix=f"copy the {what.removeprefix('API ')} again",
    )


@dataclass(frozen=True)
class Proxy:
    """A proxy that the environment sets for a server."""

    variable: str
    url: str  # without user and password

    def __str__(self) -> str:
        return f"the proxy {self.url} ({self.variable})"


def find_proxy(client: httpx2.AsyncClient, base_url: str) -> Proxy | None:
    """Return the proxy that this client uses for requests to `base_url`, or None.

    Raises:
        TeacherRefused: the client does not support this kind of proxy.
    """
    import httpx2

    used = getattr(client._transport_for_url(httpx2.URL(base_url)), "proxy", None)
    if used is None:
        return None
    proxy = Proxy(_proxy_variable(urlsplit(base_url).scheme), mask_secrets(str(used.url)).rstrip("/"))
    if used.url.scheme not in {"http", "https"} or used.url.port == 0 or (used.url.port or 1) > 65_535:
        raise TeacherRefused(
            f"no request to {mask_secrets(base_url)} can go through this proxy; nothing was sent",
            setting=proxy.variable,
            value=proxy.url,
            fix=f"use an http:// or https:// proxy, or {bypass_advice(base_url)}",
        )
    return proxy


def proxy_error() -> TeacherRefused:
    """Return the error to raise if the client cannot be created with the proxies of the environment."""
    proxies = {name: os.environ[name] for name in _proxy_variables("http", "https", "all") if os.environ.get(name)}
    listed = ", ".join(f"{name} is {mask_secrets(url)!r}" for name, url in proxies.items())
    return TeacherRefused(
        f"a proxy of the environment cannot be used ({listed}); nothing was sent",
        fix="set it to an http:// or https:// URL with a port, or unset the variable",
    )


def bypass_advice(base_url: str) -> str:
    """Return advice on how to bypass the proxy."""
    return f"set NO_PROXY={urlsplit(base_url).hostname} to bypass it"


def _proxy_variables(*schemes: str) -> list[str]:
    return [name for scheme in schemes for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper())]


def _proxy_variable(scheme: str) -> str:
    """Return the variable that sets a scheme's proxy: <scheme>_proxy before all_proxy, lower case before upper case."""
    names = _proxy_variables(scheme, "all")
    return next((name for name in names if os.environ.get(name)), "the system's settings")
