"""Call the store behind a URL: open it, retry transient errors, and explain all others.

    call_store("s3://bucket/labels/words", lambda fs, path: fs.cat_file(path))

There is one fsspec file system per store and process, without a listings cache, since another run may write at any time.
The retries of fsspec are kept low; this module retries with backoff for all calls. Credentials come only from the
environment, and messages of the store are shown without them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from stillhouse.errors import StillhouseError, StorageFailed, UsageError
from stillhouse.inputs.urls import check_base_url, mask_secrets

_LOG = logging.getLogger(__name__)
_PATIENCE = 120.0  # seconds of retries for a store that has answered before
_FIRST_PATIENCE = 10.0  # seconds of retries for a store that has never answered
_LONGEST_PAUSE = 10.0
_S3 = ("s3", "s3a")
_EXTRAS = {
    "s3": "stillhouse[s3]",
    "s3a": "stillhouse[s3]",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}
_PASSING_CODES = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "RequestLimitExceeded",
}
_PASSING_NAMES = {  # of exception classes or their bases: the libraries that raise them may not be installed
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
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")

Answer = TypeVar("Answer")
_opened: dict[tuple[int, str], Any] = {}
_opening = threading.Lock()
_answered: set[str] = set()  # stores that have answered in this process


def is_s3(url: str) -> bool:
    """Whether a URL is of an S3 store."""
    return url.partition("://")[0] in _S3


def call_store(url: str, question: Callable[[Any, str], Answer], *, patience: float | None = None) -> Answer:
    """Call `question(file system, path)` for `url` and return its result; retry transient errors for `patience` seconds.

    Raises:
        FileNotFoundError: nothing exists at the URL.
        FileExistsError: a conditional write failed: the object exists or was changed.
        StorageFailed: the store cannot be reached, denies access, or has no such bucket.
        UsageError: the library for this kind of store is not installed, or the URL cannot be used.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    store = _store_of(url)
    waits = patience if patience is not None else _PATIENCE if store in _answered else _FIRST_PATIENCE

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _LOG.warning(
            "%s: %s; trying again for up to %.0f s", store, _said(error), waits - (state.seconds_since_start or 0)
        )

    fs, path = _file_system(url)
    tries = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_delay(waits),
        wait=wait_random_exponential(multiplier=0.2, max=_LONGEST_PAUSE),
        before_sleep=tell,
        reraise=True,
    )
    try:
        answer = tries(question, fs, path)
    except Exception as error:
        if not _is_of_the_store(error):
            raise
        raise _in_words(url, error, waits) from None
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
        needed = _EXTRAS.get(protocol, "the library of that store for fsspec")
        told = f"run `pip install '{needed}'`" if protocol in _EXTRAS else f"install {needed}"
        raise UsageError(f"{url} needs a library that is not installed: {told}") from None
    except ValueError as error:
        raise UsageError(f"{url} cannot be used as a store: {error}") from None
    fs.dircache.use_listings_cache = False
    if is_s3(url):
        fs.retries = 2  # per part of a large upload; `call_store` does the longer retries
    return fs


def _s3_endpoint() -> dict[str, str]:
    """Return the S3 endpoint from the environment, if set. It is checked here, since botocore fails with a traceback."""
    for name in _ENDPOINTS:
        if given := os.environ.get(name, "").strip():
            return {"endpoint_url": check_base_url(given, f"the environment variable {name}", may_hold_secret=True)}
    return {}


def _store_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


# ------------------------------------------------------------------------------------------------------------------ errors


def _is_passing(error: BaseException) -> bool:
    """Whether an error is transient, so that a retry may succeed."""
    status = _status(error)
    if status is not None:
        return (status >= 500 and status != 501) or status == 429 or _code(error) in _PASSING_CODES
    return bool(_PASSING_NAMES & {kind.__name__ for kind in type(error).__mro__})


def _is_of_the_store(error: Exception) -> bool:
    """Whether an exception comes from the store; any other is a bug in Stillhouse and keeps its traceback."""
    if isinstance(error, StillhouseError):
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] != "builtins"


def _in_words(url: str, error: Exception, waited: float) -> Exception:
    """Return the exception to raise for a failure, with an explanation."""
    code, status = _code(error), _status(error)
    if code in {"PreconditionFailed", "ConditionalRequestConflict"} or isinstance(error, FileExistsError):
        return FileExistsError(17, "exists already, or was changed", url)
    if code == "NoSuchBucket":
        return StorageFailed(
            f"{url}: there is no such bucket ({_store_of(url)}). Create it, or mend the URL (dataset.root, or --root)."
        )
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(2, "is not there", url)
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"}:
        return StorageFailed(
            f"{url}: no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the "
            "environment and run again."
        )
    if isinstance(error, PermissionError) or status in {401, 403}:
        return StorageFailed(
            f"{url}: the store refuses: {_said(error)}. Check the credentials in the environment and their right to read "
            "and write there, then run again."
        )
    if _is_passing(error):
        return StorageFailed(
            f"{url} cannot be reached: {_said(error)}, for {waited:.0f} seconds. What was durable before is kept: check "
            f"the network{_endpoint()}, and run again."
        )
    return StorageFailed(
        f"{url} cannot be used: {_said(error)}. What was durable before is kept: mend it and run again."
    )


def _said(error: BaseException | None) -> str:
    """Return an error message on one line, without secrets."""
    status = _status(error) if error else None
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{status}: {text}" if status is not None else text
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    if password := urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).password:
        text = text.replace(password, "***")
    return text


def _endpoint() -> str:
    """Return the S3 endpoint variable for an error message; empty if it is not set."""
    given = next((url for name in _ENDPOINTS if (url := os.environ.get(name))), "")
    return f" and AWS_ENDPOINT_URL ({mask_secrets(given.strip())})" if given else ""


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
