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
_OF_A_NEW_REPOSITORY = {".gitattributes", "README.md"}  # files that the hub creates in a new repository


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
class _Found:
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
    with _told(repo, endpoint, token):
        found = _found(api, repo, private=private)
        ours = _listed_by_our_manifest(api, repo, found)
        _refuse_to_replace(repo, found.files & set(files) - ours)
        removed = sorted(found.files & ours - set(files))
        with _on_this_machine(dataset, files) as folder:
            adds: list[Any] = [CommitOperationAdd(name, folder / name) for name in files]
            commit = api.create_commit(
                repo,
                [*adds, *(CommitOperationDelete(name) for name in removed)],
                commit_message=f"{dataset.manifest.label}, by Stillhouse {dataset.manifest.stillhouse}",
                repo_type="dataset",
                parent_commit=found.commit,  # fails if the repository has changed since it was read
            )
    kept = sorted(found.files - ours - _OF_A_NEW_REPOSITORY)
    return Pushed(repo, f"{endpoint}/datasets/{repo}", str(commit.oid), tuple(files), tuple(removed), tuple(kept))


# ---------------------------------------------------------------------------------------------------------------- checks


def _token() -> SecretStr:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UsageError(
            "the environment variable HF_TOKEN is not set: make a token with write access at "
            "https://huggingface.co/settings/tokens, and export HF_TOKEN=..."
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("the environment variable HF_TOKEN holds characters that no token has: copy the token anew")
    return SecretStr(token)


def _endpoint() -> str:
    given = os.environ.get("HF_ENDPOINT", "").strip() or "https://huggingface.co"
    return check_base_url(given, "the environment variable HF_ENDPOINT")


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    owner, _, name = repo.partition("/")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        said = str(error).partition(":")[0]
        raise UsageError(f"--to is {repo!r}: {said}. Give user/name, or organisation/name") from None
    if not owner or not name:
        raise UsageError(f"--to is {repo!r}: give the owner too, as user/{repo} or organisation/{repo}")


def _files(dataset: Dataset) -> list[str]:
    """Return all files of the version, the manifest last."""
    extras = [name for name in EXTRA_FILES if (dataset.folder / name).is_file()]
    return [*(entry.path for entry in dataset.manifest.files), *extras, FILE_NAME]


@contextmanager
def _on_this_machine(dataset: Dataset, files: list[str]) -> Iterator[Path]:
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


def _found(api: HfApi, repo: str, *, private: bool) -> _Found:
    """Return the state of the repository; create it if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.dataset_info(repo)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise  # the hub gives the same error for an invalid token
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=False)
        return _Found()
    if private and not found.private:
        raise UsageError(
            f"--private is set, and the repository {repo} is there already and public: make it private in its settings, or "
            "choose another name. Nothing was sent."
        )
    return _Found(frozenset(sibling.rfilename for sibling in found.siblings or []), found.sha)


def _listed_by_our_manifest(api: HfApi, repo: str, found: _Found) -> frozenset[str]:
    """Return the files that a push may replace: those that the repository's manifest lists, the manifest and the card.

    Raises:
        UsageError: the repository has files but no manifest, or a manifest that Stillhouse did not write.
    """
    if FILE_NAME not in found.files:
        if strange := sorted(found.files - _OF_A_NEW_REPOSITORY):
            raise UsageError(
                f"--to is {repo!r}, a repository with files that no push of Stillhouse put there "
                f"({', '.join(strange[:3])}): choose another name. Nothing was sent."
            )
        return frozenset(_OF_A_NEW_REPOSITORY)
    try:
        manifest = _manifest_there(api, repo, found)
    except DatasetRefused as error:
        raise UsageError(
            f"--to is {repo!r}, a repository whose {FILE_NAME} was not put there by a push of Stillhouse ({error}): choose "
            "another name. Nothing was sent."
        ) from None
    return frozenset({*(entry.path for entry in manifest.files), *EXTRA_FILES, FILE_NAME})


def _manifest_there(api: HfApi, repo: str, found: _Found) -> Manifest:
    with tempfile.TemporaryDirectory(prefix="stillhouse-push-") as folder:
        file = api.hf_hub_download(repo, FILE_NAME, repo_type="dataset", revision=found.commit, local_dir=folder)
        return parse_manifest(Path(file).read_bytes(), f"{repo}/{FILE_NAME}")


def _refuse_to_replace(repo: str, foreign: frozenset[str]) -> None:
    if foreign:
        raise UsageError(
            f"--to is {repo!r}, and its {FILE_NAME} does not list {', '.join(sorted(foreign)[:3])}, which this push would "
            "replace: rename or remove that there, or choose another name. Nothing was sent."
        )


# ---------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def _told(repo: str, endpoint: str, token: SecretStr) -> Iterator[None]:
    """Turn errors of the hub client into PushFailed with an explanation, without the token."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        yield
    except OfflineModeIsEnabled:
        raise UsageError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it and run again") from None
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise PushFailed(_failure(error, repo, endpoint).replace(token.get_secret_value(), "***")) from None


def _failure(error: BaseException, repo: str, endpoint: str) -> str:
    """Explain an error. The library raises a RuntimeError for a failed upload, and a ValueError for a rejected one."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _failure(error.__cause__, repo, endpoint)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = " ".join(str(error.server_message or error.response.reason_phrase or "").split())[:300]
        return f"{endpoint} said {status} of {repo} ({said}): {_mend(status, repo)}"
    said = " ".join(str(error).split())[:300]
    if isinstance(error, httpx2.HTTPError | OSError):
        return (
            f"{endpoint} cannot be reached ({type(error).__name__}: {said}): check the network and HF_ENDPOINT, and push "
            "again; what is there already is not sent twice"
        )
    return f"{endpoint} did not take {repo} ({type(error).__name__}: {said}): {_mend(0, repo)}"


def _mend(status: int, repo: str) -> str:
    owner = repo.partition("/")[0]
    if status == 401:
        return "it does not know the token in HF_TOKEN. Make a new one with write access."
    if status == 403:
        return f"the token in HF_TOKEN may not write there. Give it write access to {owner}."
    if status == 404:
        return f"there is no such owner or repository. Check that {owner!r} is your user or organisation."
    if status in {409, 412}:
        return "somebody else changed the repository at the same time. Push again."
    if status == 429:
        return "it has had too many requests. Wait some minutes, and push again."
    return "push again later; what arrived before the commit is not visible to anybody."
