"""Push to a stand-in of the hub: the same bytes arrive, in one commit, and every refusal is told without the token.

Xet, the hub's newer way for large files, is switched off: its storage has a protocol of its own that no stand-in here
speaks.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.dataset.manifest import FILE_NAME, write_manifest
from stillhouse.dataset.store import Dataset, open_dataset
from stillhouse.labelling.engine import label
from tests.conftest import MakeRecipe
from tests.exchange.hub_stand_in import TOKEN, Hub, Repository, serving

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of how the library uploads

Push = Callable[..., Result]


@pytest.fixture
def hub() -> Iterator[Hub]:
    one = Hub()
    with serving(one):
        yield one


@pytest.fixture
def dataset(scripted_recipe: MakeRecipe) -> Dataset:
    return asyncio.run(label(scripted_recipe(quality=[{"kind": "length", "max_tokens": 9}]))).dataset


@pytest.fixture
def push(hub: Hub, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as in the environment of the tests it is not

    def run(to: str = "ada/words", *more: str, token: str | None = TOKEN, endpoint: str | None = None) -> Result:
        monkeypatch.setenv("HF_ENDPOINT", endpoint or hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", token) if token is not None else monkeypatch.delenv("HF_TOKEN", raising=False)
        root = str(tmp_path / "labels")
        done = CliRunner().invoke(app, ["datasets", "push", "words", "--to", to, "--root", root, *more])
        assert isinstance(done.exception, SystemExit | None), done.exception
        assert TOKEN not in done.output
        return done

    return run


def test_the_same_bytes_arrive_in_one_commit_and_verify(push: Push, hub: Hub, dataset: Dataset, tmp_path: Path) -> None:
    done = push("ada/words", "--private", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["url"], result["removed"]) == (f"{hub.endpoint}/datasets/ada/words", [])
    assert result["files"][-1] == FILE_NAME
    repository = hub.repositories["ada/words"]
    assert repository.private
    assert [one["summary"].partition(",")[0] for one in repository.commits] == ["words/v001"]
    here = {str(file.relative_to(dataset.folder)): file for file in dataset.folder.rglob("*") if file.is_file()}
    assert any(name.startswith("rejected/") for name in here)
    assert repository.files.keys() - {".gitattributes"} == here.keys()
    assert {name: repository.files[name] for name in here} == {name: file.read_bytes() for name, file in here.items()}
    copy = tmp_path / "copy/words/v001"
    for name, content in repository.files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    assert open_dataset(copy.parent).problems() == []


def test_a_newer_version_takes_the_place_of_the_older_one(push: Push, hub: Hub, dataset: Dataset) -> None:
    older = _pushed_before(hub, dataset, "data/train-00000-of-00007.parquet")
    older.files |= {"data/notes.csv": b"theirs", "data/train-00001-of-00009.parquet": b"theirs", "LICENSE": b"theirs"}
    done = push("ada/words", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["removed"] == ["data/train-00000-of-00007.parquet"]
    assert "data/train-00000-of-00007.parquet" not in older.files
    theirs = ["LICENSE", "data/notes.csv", "data/train-00001-of-00009.parquet"]
    assert result["kept"] == theirs and {older.files[name] for name in theirs} == {b"theirs"}
    assert "also has files that no push wrote" in done.stderr and "LICENSE" in done.stderr
    assert [one["parentCommit"] for one in older.commits] == ["0" * 40]  # of what the manifest was read


def test_what_is_there_is_not_sent_again(push: Push, hub: Hub) -> None:
    assert push().exit_code == 0
    uploads = sum(request.startswith("PUT") for request in hub.requests)
    done = push("ada/words", "--json")
    assert (json.loads(done.stdout)["removed"], json.loads(done.stdout)["kept"]) == ([], [])
    assert len(hub.repositories["ada/words"].commits) == 2
    assert sum(request.startswith("PUT") for request in hub.requests) == uploads


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b'{"name": "an extension", "manifest_version": 3}',
        b'{"format_version": 1, "files": [{"path": "data/train-0.parquet"}]}',
    ],
)
def test_a_manifest_of_others_is_not_taken_for_ours(push: Push, hub: Hub, manifest: bytes) -> None:
    theirs = {"manifest.json": manifest, "data/train-0.parquet": b"theirs", "README.md": b"theirs"}
    hub.repositories["ada/words"] = Repository(private=False, files=dict(theirs))
    done = push()
    assert (done.exit_code, "was not written by a push of Stillhouse" in done.stderr) == (2, True), done.stderr
    assert hub.repositories["ada/words"].files == theirs
    assert all(request.startswith(("GET", "HEAD")) for request in hub.requests)


def test_a_manifest_that_was_edited_is_not_taken_for_ours(push: Push, hub: Hub, dataset: Dataset) -> None:
    repository = _pushed_before(hub, dataset, "data/theirs.parquet")
    edited = json.loads(repository.files[FILE_NAME]) | {"name": "edited"}
    repository.files[FILE_NAME] = json.dumps(edited, indent=2).encode()
    before = dict(repository.files)
    assert push().exit_code == 2
    assert repository.files == before


def test_a_file_of_others_is_not_replaced(push: Push, hub: Hub, dataset: Dataset) -> None:
    repository = _pushed_before(hub, dataset, dataset.manifest.files[0].path, instead=True)
    taken = dataset.manifest.files[1].path
    repository.files[taken] = b"theirs"
    done = push()
    assert (done.exit_code, taken in done.stderr) == (2, True), done.stderr
    assert repository.files[taken] == b"theirs"


def test_a_recipe_of_others_is_not_replaced(push: Push, hub: Hub) -> None:
    hub.repositories["ada/words"] = Repository(private=False, files={"recipe.yaml": b"soup: 1"})
    assert push().exit_code == 2
    assert hub.repositories["ada/words"].files == {"recipe.yaml": b"soup: 1"}


def _pushed_before(hub: Hub, dataset: Dataset, path: str, *, instead: bool = False) -> Repository:
    """A repository with an earlier push, whose manifest lists `path` besides its files, or instead of them."""
    entry = dataset.manifest.files[0].model_copy(update={"path": path})
    listed = (entry,) if instead else (*dataset.manifest.files, entry)
    folder = dataset.folder.parent / "earlier"
    folder.mkdir()
    write_manifest(folder, dataset.manifest.model_copy(update={"files": listed}))
    files = {one.path: b"of an earlier version" for one in listed}
    files |= {FILE_NAME: (folder / FILE_NAME).read_bytes()}
    hub.repositories["ada/words"] = Repository(private=False, files=files)
    return hub.repositories["ada/words"]


def test_a_version_that_does_not_verify_is_refused(push: Push, hub: Hub, dataset: Dataset) -> None:
    file = dataset.folder / dataset.manifest.files[0].path
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = push()
    assert (done.exit_code, file.name in done.stderr) == (1, True)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("to", "token", "words"),
    [
        ("ada/words", None, "HF_TOKEN: the environment variable is not set"),
        ("ada/words", "  ", "HF_TOKEN: the environment variable is not set"),
        ("ada/words", "hf_–dash", "HF_TOKEN: it contains characters that no token has"),
        ("words", TOKEN, "--to is 'words': the owner is missing"),
        ("ada/wo rds", TOKEN, "--to is 'ada/wo rds'"),
        ("a/b/c", TOKEN, "--to is 'a/b/c'"),
        ("ada/", TOKEN, "--to is 'ada/'"),
    ],
)
def test_wrong_arguments_send_nothing(push: Push, hub: Hub, to: str, token: str | None, words: str) -> None:
    done = push(to, token=token)
    assert (done.exit_code, words in done.stderr) == (2, True), done.stderr
    assert hub.requests == []


def test_what_others_put_there_is_not_touched(push: Push, hub: Hub) -> None:
    hub.repositories["ada/words"] = Repository(private=False, files={"data/train-0.parquet": b"theirs"})
    done = push()
    assert (done.exit_code, "no push of Stillhouse wrote" in done.stderr) == (2, True)
    hub.repositories["ada/words"] = Repository(private=False)
    done = push("ada/words", "--private")
    assert (done.exit_code, "already exists and is public" in done.stderr) == (2, True)
    assert all(request.startswith("GET") for request in hub.requests)


@pytest.mark.parametrize(
    ("where", "status", "words"),
    [
        ("GET /api/datasets", 401, "the token in HF_TOKEN is not valid"),
        ("GET /api/datasets", 403, "has no write access there"),
        ("create", 403, "has no write access there. Give it write access to ada"),
        ("create", 404, "the owner or the repository does not exist"),
        ("create", 409, "the repository was changed at the same time"),
        ("preupload", 403, "has no write access there"),
        ("commit", 409, "the repository was changed at the same time"),
        ("commit", 412, "the repository was changed at the same time"),
        ("objects/batch", 400, "Push again later"),
        ("PUT /upload", 403, "has no write access there"),
    ],
)
def test_what_the_hub_refuses_is_told(push: Push, hub: Hub, where: str, status: int, words: str) -> None:
    hub.fail = (where, status)
    done = push()
    assert (done.exit_code, words in done.stderr) == (1, True), done.stderr
    assert f"answered {status} for ada/words" in done.stderr
    assert FILE_NAME not in hub.repositories.get("ada/words", Repository(private=False)).files


def test_a_wrong_token_and_no_network(push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = push(token="hf_another-one")
    assert (wrong.exit_code, "the token in HF_TOKEN is not valid" in wrong.stderr) == (1, True), wrong.stderr
    assert "hf_another-one" not in wrong.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        away = push(endpoint=nobody)
    assert (away.exit_code, f"{nobody} cannot be reached" in away.stderr) == (1, True), away.stderr
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = push()
    assert (offline.exit_code, "HF_HUB_OFFLINE: nothing can be pushed while it is set" in offline.stderr) == (
        2,
        True,
    ), offline.stderr


def test_a_push_that_broke_off_is_done_by_the_next(push: Push, hub: Hub) -> None:
    hub.fail = ("commit", 400)
    assert push().exit_code == 1
    hub.fail = None
    assert push().exit_code == 0
    assert FILE_NAME in hub.repositories["ada/words"].files
