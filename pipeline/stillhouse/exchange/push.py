"""Push a dataset version to the Hugging Face hub, with its card.

    pushed = push_dataset(dataset, "somebody/quickstart", private=True)

The files are uploaded unchanged in a single commit that includes the manifest, so a download of the repository can be
verified. The token is read only from HF_TOKEN and never appears in a message. A version that fails verification is refused.
An existing repository must be empty, apart from files that the hub creates, or have the manifest of an earlier push: only
files that this manifest lists are replaced or removed; all others stay.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from stillhouse.dataset.manifest import EXTRA_FILES, FILE_NAME, Manifest, parse_manifest
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused, PushFailed, UsageError
from stillhouse.inputs.urls import check_base_url

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_CHUNK = 1 << 20
_HUB_FILES = {".gitattributes", "README.md"}  # files that the hub creates in a new repository


@dataclass(frozen=True)
class Pushed:
    """The result of a push."""

    repo: str
    url: str
    commit: str
    files: tuple[str, ...]
    removed: tuple[str, ...]  # files of the previously pushed version that are not in this one
    kept: tuple[str, ...]  # files in the repository that no push wrote


@dataclass(frozen=True)
class _Repository:
    """The state of a repository before the push."""

    files: frozenset[str] = frozenset()
    commit: str | None = None


def push_dataset(dataset: Dataset, repo: str, *, private: bool = False) -> Pushed:
    """Push a version to a repository, replacing the version that was pushed before; create the repository if needed.

    Raises:
        UsageError: HF_TOKEN or HF_ENDPOINT cannot be used, the repository name is invalid, the repository is public
            although `private` is true, or it has foreign files that the push would replace. Nothing was sent.
        DatasetRefused: a file has changed since the version was written. Nothing was sent.
        PushFailed: the hub rejects the push, or cannot be reached.
    """
    token = _token()
    _check_name(repo)
    endpoint = _endpoint()
    dataset.check()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=endpoint, token=token.get_secret_value(), library_name="stillhouse")
    files = _files(dataset)
    with _hub_errors(repo, endpoint, token):
        found = _open_repository(api, repo, private=private)
        ours = _files_of_last_push(api, repo, found)
        _check_foreign(repo, found.files & set(files) - ours)
        removed = sorted(found.files & ours - set(files))
        with _local_copy(dataset, files) as folder:
            adds: list[Any] = [CommitOperationAdd(name, folder / name) for name in files]
            commit = api.create_commit(
                repo,
                [*adds, *(CommitOperationDelete(name) for name in removed)],
                commit_message=f"{dataset.manifest.label}, by Stillhouse {dataset.manifest.stillhouse}",
                repo_type="dataset",
                parent_commit=found.commit,  # fails if the repository has changed since it was read
            )
    kept = sorted(found.files - ours - _HUB_FILES)
    return Pushed(repo, f"{endpoint}/datasets/{repo}", str(commit.oid), tuple(files), tuple(removed), tuple(kept))


# ---------------------------------------------------------------------------------------------------------------- checks


def _token() -> SecretStr:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UsageError(
            "the environment variable is not set",
            setting="HF_TOKEN",
            fix="create a token with write access at https://huggingface.co/settings/tokens, and export HF_TOKEN=...",
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("it contains characters that no token has", setting="HF_TOKEN", fix="copy the token again")
    return SecretStr(token)


def _endpoint() -> str:
    given = os.environ.get("HF_ENDPOINT", "").strip() or "https://huggingface.co"
    return check_base_url(given, "HF_ENDPOINT")


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    owner, _, name = repo.partition("/")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        problem = str(error).partition(":")[0]
        raise UsageError(problem, setting="--to", value=repo, fix="use user/name, or organisation/name") from None
    if not owner or not name:
        raise UsageError(
            "the owner is missing", setting="--to", value=repo, fix=f"use user/{repo}, or organisation/{repo}"
        )


def _files(dataset: Dataset) -> list[str]:
    """Return all files of the version, the manifest last."""
    extras = [name for name in EXTRA_FILES if (dataset.folder / name).is_file()]
    return [*(entry.path for entry in dataset.manifest.files), *extras, FILE_NAME]


@contextmanager
def _local_copy(dataset: Dataset, files: list[str]) -> Iterator[Path]:
    """Yield the version's folder, or a temporary local copy if it is in a store."""
    if isinstance(dataset.folder, Path):
        yield dataset.folder
        return
    with tempfile.TemporaryDirectory(prefix="stillhouse-push-") as name:
        for file in files:
            copy = Path(name, file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with (dataset.folder / file).open("rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
        yield Path(name)


def _open_repository(api: HfApi, repo: str, *, private: bool) -> _Repository:
    """Return the state of the repository; create it if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.dataset_info(repo)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise  # the hub gives the same error for an invalid token
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=False)
        return _Repository()
    if private and not found.private:
        raise UsageError(
            f"the repository {repo} already exists and is public. Nothing was sent",
            setting="--private",
            value=True,
            fix="make the repository private in its settings, or choose another name",
        )
    return _Repository(frozenset(sibling.rfilename for sibling in found.siblings or []), found.sha)


def _files_of_last_push(api: HfApi, repo: str, found: _Repository) -> frozenset[str]:
    """Return the files that a push may replace: those that the repository's manifest lists, the manifest and the card.

    Raises:
        UsageError: the repository has files but no manifest, or a manifest that Stillhouse did not write.
    """
    if FILE_NAME not in found.files:
        if foreign := sorted(found.files - _HUB_FILES):
            raise UsageError(
                f"the repository has files that no push of Stillhouse wrote ({', '.join(foreign[:3])}). Nothing was sent",
                setting="--to",
                value=repo,
                fix="choose another name",
            )
        return frozenset(_HUB_FILES)
    try:
        manifest = _download_manifest(api, repo, found)
    except DatasetRefused as error:
        raise UsageError(
            f"the repository's {FILE_NAME} was not written by a push of Stillhouse ({error}). Nothing was sent",
            setting="--to",
            value=repo,
            fix="choose another name",
        ) from None
    return frozenset({*(entry.path for entry in manifest.files), *EXTRA_FILES, FILE_NAME})


def _download_manifest(api: HfApi, repo: str, found: _Repository) -> Manifest:
    with tempfile.TemporaryDirectory(prefix="stillhouse-push-") as folder:
        file = api.hf_hub_download(repo, FILE_NAME, repo_type="dataset", revision=found.commit, local_dir=folder)
        return parse_manifest(Path(file).read_bytes(), f"{repo}/{FILE_NAME}")


def _check_foreign(repo: str, foreign: frozenset[str]) -> None:
    if foreign:
        raise UsageError(
            f"this push would replace {', '.join(sorted(foreign)[:3])}, which the repository's {FILE_NAME} does not list. "
            "Nothing was sent",
            setting="--to",
            value=repo,
            fix="rename or remove these files in the repository, or choose another name",
        )


# ---------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def _hub_errors(repo: str, endpoint: str, token: SecretStr) -> Iterator[None]:
    """Turn errors of the hub client into PushFailed with an explanation, without the token."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        yield
    except OfflineModeIsEnabled:
        raise UsageError(
            "nothing can be pushed while it is set", setting="HF_HUB_OFFLINE", fix="unset it and run again"
        ) from None
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        problem, fix = _explain(error, repo, endpoint)
        raise PushFailed(problem.replace(token.get_secret_value(), "***"), fix=fix) from None


def _explain(error: BaseException, repo: str, endpoint: str) -> tuple[str, str]:
    """Return an error's problem and fix. The library raises RuntimeError for a failed upload, ValueError if rejected."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _explain(error.__cause__, repo, endpoint)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        message = " ".join(str(error.server_message or error.response.reason_phrase or "").split())[:300]
        reason, fix = _advice(status, repo)
        return f"{endpoint} answered {status} for {repo} ({message}){reason}", fix
    message = " ".join(str(error).split())[:300]
    if isinstance(error, httpx2.HTTPError | OSError):
        return (
            f"{endpoint} cannot be reached ({type(error).__name__}: {message})",
            "check the network and HF_ENDPOINT, and push again; files that arrived are not sent again",
        )
    reason, fix = _advice(0, repo)
    return f"{endpoint} rejected {repo} ({type(error).__name__}: {message}){reason}", fix


def _advice(status: int, repo: str) -> tuple[str, str]:
    """Return what an HTTP status means, and the fix."""
    owner = repo.partition("/")[0]
    if status == 401:
        return ": the token in HF_TOKEN is not valid", "create a new token with write access"
    if status == 403:
        return ": the token in HF_TOKEN has no write access there", f"give it write access to {owner}"
    if status == 404:
        return ": the owner or the repository does not exist", f"check that {owner!r} is your user or organisation"
    if status in {409, 412}:
        return ": the repository was changed at the same time", "push again"
    if status == 429:
        return ": it has received too many requests", "wait some minutes, and push again"
    return "", "push again later; files that arrived before the commit are not visible"
