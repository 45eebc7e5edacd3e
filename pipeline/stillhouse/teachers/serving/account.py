"""Where an API is and whose key it gets, from the recipe and the environment.

base_url = find_base_url(options.base_url, "OPENAI_BASE_URL", "https://api.openai.com/v1")
key = find_key(options.api_key_env, base_url)
"""

from __future__ import annotations

import hashlib
import os
from urllib.parse import urlsplit

from pydantic import SecretStr

from stillhouse.errors import RecipeError
from stillhouse.inputs.urls import check_base_url
from stillhouse.teachers.serving.environment import read_key
from stillhouse.teachers.serving.openai_api import NO_KEY

_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}


def find_base_url(given: str | None, variable: str, default: str) -> str:
    """Return the base URL from `teacher.options.base_url`, else from the environment variable, else `default`.

    Raises:
        RecipeError: it is not a URL that requests can be sent to.
    """
    named = [("teacher.options.base_url", given), (variable, os.environ.get(variable))]
    setting, url = next(((name, url) for name, url in named if url and url.strip()), ("", default))
    return check_base_url(url, setting)


def find_key(variable: str, base_url: str) -> SecretStr:
    """Return the API key in an environment variable; a server on this machine needs none.

    Raises:
        RecipeError: the variable is not set, or its value cannot be sent.
    """
    if key := read_key(variable):
        return key
    if urlsplit(base_url).hostname in _LOCAL_HOSTS:
        return SecretStr(NO_KEY)
    raise RecipeError(
        f"the environment variable is not set, and requests go to {base_url}",
        setting=variable,
        fix=f"export {variable}=..., or name another variable in teacher.options.api_key_env",
    )


def account_of(base_url: str, key: SecretStr) -> str:
    """Return the server and the first digits of a hash of the key: enough to tell two accounts apart, and no secret."""
    digest = hashlib.sha256(f"stillhouse batch account\n{key.get_secret_value()}".encode()).hexdigest()
    return f"{base_url} #{digest[:8]}"
