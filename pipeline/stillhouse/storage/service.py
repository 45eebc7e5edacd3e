"""Call the store behind a URL: open it, retry transient errors, and explain all others.

    call_store("s3://bucket/labels/words", lambda fs, path: fs.cat_file(path))

There is one fsspec file system per store and process, without a listings cache, since another run may write at any time.
The retries of fsspec are kept low; this module retries with backoff for all calls. Credentials come only from the
environment, and messages of the store are shown without them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from stillhouse.errors import StillhouseError, StorageFailed, UsageError
from stillhouse.inputs.urls import check_base_url, mask_secrets

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 120.0  # seconds of retries for a store that has answered before
_FIRST_RETRY_SECONDS = 10.0  # seconds of retries for a store that has never answered
_MAX_BACKOFF = 10.0
_S3 = ("s3", "s3a")
_EXTRAS = {
    "s3": "stillhouse[s3]",
    "s3a": "stillhouse[s3]",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}
_TRANSIENT_CODES = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "RequestLimitExceeded",
}
_TRANSIENT_NAMES = {  # of exception classes or their bases: the libraries that raise them may not be installed
    "ConnectionError",
    "TimeoutError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServerDisconnectedError",
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # environment variables; the first that is set is used
_USER_INFO = re.compile(r"(?<=://)[^\s/?#]*@")  # of a URL in a message
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")

Answer = TypeVar("Answer")
_opened: dict[tuple[int, str], Any] = {}
_opening = threading.Lock()
_answered: set[str] = set()  # stores that have answered in this process


def is_s3(url: str) -> bool:
    """Whether a URL is of an S3 store."""
    return url.partition("://")[0] in _S3


def call_store(url: str, request: Callable[[Any, str], Answer], *, retry_seconds: float | None = None) -> Answer:
    """Call `request(file system, path)` for `url` and return its result; retry transient errors for `retry_seconds`.

    Raises:
        FileNotFoundError: nothing exists at the URL.
        FileExistsError: a conditional write failed: the object exists or was changed.
        StorageFailed: the store cannot be reached, denies access, or has no such bucket.
        UsageError: the library for this kind of store is not installed, or the URL cannot be used.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    store = _store_of(url)
    limit = (
        retry_seconds if retry_seconds is not None else _RETRY_SECONDS if store in _answered else _FIRST_RETRY_SECONDS
    )

    def log_retry(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _LOG.warning(
            "%s: %s; retrying for up to %.0f s", store, _describe(error), limit - (state.seconds_since_start or 0)
        )

    fs, path = _file_system(url)
    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_delay(limit),
        wait=wait_random_exponential(multiplier=0.2, max=_MAX_BACKOFF),
        before_sleep=log_retry,
        reraise=True,
    )
    try:
        answer = retrying(request, fs, path)
    except Exception as error:
        if not _is_store_error(error):
            raise
        raise _explained(url, error, limit) from None
    _answered.add(store)
    return answer


def has_code(error: BaseException, *codes: str) -> bool:
    """Whether an S3 error has one of these error codes."""
    return _code(error) in codes


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the URL's path in it."""
    key = (os.getpid(), _store_of(url))  # a forked child does not have its parent's threads
    with _opening:
        if key not in _opened:
            _opened[key] = _open(url)
        fs = _opened[key]
    return fs, str(fs._strip_protocol(url))


def _open(url: str) -> Any:
    import fsspec

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    if is_s3(url):
        options = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}, **_s3_endpoint()}
    try:
        fs, _ = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
    except ImportError:
        needed = _EXTRAS.get(protocol, "the fsspec library for this kind of store")
        fix = f"run `pip install '{needed}'`" if protocol in _EXTRAS else f"install {needed}"
        raise UsageError(f"{url} needs a library that is not installed", fix=fix) from None
    except ValueError as error:
        raise UsageError(
            f"{url} cannot be used as a store: {error}", fix="give a folder, or a URL such as s3://bucket/labels"
        ) from None
    fs.dircache.use_listings_cache = False
    if is_s3(url):
        fs.retries = 2  # per part of a large upload; `call_store` does the longer retries
    return fs


def _s3_endpoint() -> dict[str, str]:
    """Return the S3 endpoint from the environment, if set. It is checked here, since botocore fails with a traceback."""
    for name in _ENDPOINTS:
        if given := os.environ.get(name, "").strip():
            return {"endpoint_url": check_base_url(given, name, may_hold_secret=True)}
    return {}


def _store_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


# ------------------------------------------------------------------------------------------------------------------ errors


def _is_transient(error: BaseException) -> bool:
    """Whether an error is transient, so that a retry may succeed."""
    status = _status(error)
    if status is not None:
        return (status >= 500 and status != 501) or status == 429 or _code(error) in _TRANSIENT_CODES
    return bool(_TRANSIENT_NAMES & {kind.__name__ for kind in type(error).__mro__})


def _is_store_error(error: Exception) -> bool:
    """Whether an exception comes from the store; any other is a bug in Stillhouse and keeps its traceback."""
    if isinstance(error, StillhouseError):
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] != "builtins"


def _explained(url: str, error: Exception, waited: float) -> Exception:
    """Return the exception to raise for a failure, with an explanation."""
    code, status = _code(error), _status(error)
    if code in {"PreconditionFailed", "ConditionalRequestConflict"} or isinstance(error, FileExistsError):
        return FileExistsError(17, "already exists, or was changed", url)
    if code == "NoSuchBucket":
        return StorageFailed(
            f"{url}: the bucket {_store_of(url)} does not exist",
            fix="create it, or correct the URL (dataset.root, or --root)",
        )
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(2, "does not exist", url)
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"}:
        return StorageFailed(
            f"{url}: no credentials were found",
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment and run again",
        )
    if isinstance(error, PermissionError) or status in {401, 403}:
        return StorageFailed(
            f"{url}: the store denies access: {_describe(error)}",
            fix="check the credentials in the environment and their permission to read and write there, and run again",
        )
    if _is_transient(error):
        return StorageFailed(
            f"{url} cannot be reached: {_describe(error)}, for {waited:.0f} seconds. Data written before is safe",
            fix=f"check the network{_endpoint()}, and run again",
        )
    return StorageFailed(
        f"{url} cannot be used: {_describe(error)}. Data written before is safe", fix="fix the cause, and run again"
    )


def _describe(error: BaseException | None) -> str:
    """Return an error message on one line, without secrets."""
    status = _status(error) if error else None
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{status}: {text}" if status is not None else text
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    for password in _endpoint_passwords():
        text = text.replace(password, "***")
    return _USER_INFO.sub("", text)


def _endpoint_passwords() -> set[str]:
    """Return the passwords in the S3 endpoint variables, as written and without percent-encoding."""
    found = set()
    for name in _ENDPOINTS:
        with contextlib.suppress(ValueError):  # not a URL: `_s3_endpoint` rejects it
            if password := urlsplit(os.environ.get(name, "").strip()).password:
                found |= {password, unquote(password)}
    return found


def _endpoint() -> str:
    """Return the S3 endpoint variable that is used, for an error message; empty if none is set."""
    for name in _ENDPOINTS:
        if given := os.environ.get(name, "").strip():
            return f" and {name} ({mask_secrets(given)})"
    return ""


def _response(error: BaseException | None) -> dict[str, Any]:
    """Return botocore's response, which s3fs keeps as the cause of the OSError that it raises."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            return answer
        error = error.__cause__
    return {}


def _code(error: BaseException) -> str | None:
    code = _response(error).get("Error", {}).get("Code")
    return str(code) if code is not None else None


def _status(error: BaseException) -> int | None:
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(status) if status is not None else None
