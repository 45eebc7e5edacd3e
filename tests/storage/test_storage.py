"""Datasets in a store: a real server that speaks S3 (SeaweedFS on 127.0.0.1), and other stores that fsspec knows."""

import asyncio
import hashlib
import json
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fsspec.implementations.local import LocalFileSystem
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.dataset.catalog import catalog, find_versions, remove
from stillhouse.dataset.files import open_parquet
from stillhouse.dataset.manifest import FILE_NAME, read_manifest, write_manifest
from stillhouse.dataset.store import all_datasets, dataset_folder, find_dataset, journal_folder, open_dataset
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.errors import DatasetMissing, DatasetRefused, RecipeError, StorageFailed, UsageError
from stillhouse.labelling import engine, job, outcome_records
from stillhouse.labelling.engine import label
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.storage import location as locations
from stillhouse.storage import service
from stillhouse.storage.durable import atomic_file, sha256_of_file, write_atomically
from stillhouse.storage.location import RemotePath, files_below, location
from tests.conftest import MakeRecipe
from tests.labelling.test_parts import InThisProcess, in_parts, split_up
from tests.s3_server import BUCKET, READER_KEY, READER_SECRET, SECRET, Window
from tests.storage.conftest import forget_stores


def at(make: MakeRecipe, root: str, **parts: Any) -> Recipe:
    return make(dataset={"root": root, "name": "words"}, **parts)


def contents(folder: Path | RemotePath) -> dict[str, bytes]:
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in folder.rglob("*.parquet")}


@pytest.fixture
def one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever writes the time writes this one."""
    for module in (job, outcome_records):
        monkeypatch.setattr(module, "utc_now", lambda: "2026-01-01T00:00:00+00:00")


def test_a_dataset_in_s3_has_the_very_bytes_of_a_local_one(
    s3: Window, s3_root: str, scripted_recipe: MakeRecipe, one_moment: None
) -> None:
    there = asyncio.run(label(at(scripted_recipe, s3_root)))
    here = asyncio.run(label(scripted_recipe()))
    assert str(there.dataset.folder) == f"{s3_root}/words/v001"
    assert contents(there.dataset.folder) == contents(here.dataset.folder) != {}
    assert there.dataset.manifest.files == here.dataset.manifest.files
    assert there.dataset.problems() == []
    assert asyncio.run(label(at(scripted_recipe, s3_root))).sent == 0


def test_parts_that_others_label_into_s3_make_the_very_bytes_of_one_run(
    s3: Window, s3_root: str, scripted_recipe: MakeRecipe, one_moment: None
) -> None:
    runner = InThisProcess()
    there = in_parts(split_up(at(scripted_recipe, s3_root)), runner)
    here = asyncio.run(label(scripted_recipe()))
    assert len(runner.recipes) > 1
    assert contents(there.dataset.folder) == contents(here.dataset.folder) != {}
    assert set(files_below(location(f"{s3_root}/words/parts"))) <= {"."}  # what SeaweedFS keeps of a folder


def test_the_manifest_is_the_last_object_that_appears(
    s3: Window, s3_root: str, scripted_recipe: MakeRecipe, tmp_path: Path
) -> None:
    asyncio.run(label(at(scripted_recipe, s3_root)))
    place = f"{s3_root.removeprefix(f's3://{BUCKET}/')}/words"
    appeared = [key.removeprefix(f"{place}/") for key in s3.appeared()]
    assert appeared[0] == ".lock"
    assert [name for name in appeared if name != ".lock"] == [
        "v001/recipe.yaml",
        *(f"v001/data/train-0000{number}-of-00003.parquet" for number in range(3)),
        "v001/data/validation-00000-of-00001.parquet",
        "v001/README.md",
        "v001/manifest.json",
    ]
    assert list(location(f"{s3_root}/words").glob("*")) == [RemotePath(f"{s3_root}/words/v001")]  # the lock is gone
    assert [path.name for path in (tmp_path / "data/journals").iterdir()] == [
        journal_folder(at(scripted_recipe, s3_root).dataset).name
    ]


def test_commands_find_show_and_verify_a_dataset_in_s3(s3: Window, s3_root: str, scripted_recipe: MakeRecipe) -> None:
    dataset = asyncio.run(label(at(scripted_recipe, s3_root))).dataset
    root = location(s3_root)
    for name in ("words", "words/v001", f"{s3_root}/words", f"{s3_root}/words/v001"):
        assert find_dataset(root, name) == dataset
    assert find_dataset(Path("elsewhere"), f"{s3_root}/words") == dataset
    assert all_datasets(root) == [dataset]
    run = CliRunner().invoke
    listed = run(app, ["datasets", "list", "--root", s3_root, "--json"])
    assert json.loads(listed.stdout)["datasets"][0]["dataset"] == "words/v001", listed.output
    assert run(app, ["datasets", "show", "words", "--root", s3_root]).exit_code == 0
    assert run(app, ["datasets", "verify", f"{s3_root}/words/v001"]).exit_code == 0
    shard = dataset.folder / dataset.manifest.files[0].path
    write_atomically(shard, shard.read_bytes()[:-1] + b"?")
    told = run(app, ["datasets", "verify", "words", "--root", s3_root])
    assert told.exit_code == 1 and "sha256" in told.output
    with pytest.raises(DatasetRefused):
        dataset.check()
    with pytest.raises(DatasetMissing, match=f"under {s3_root}"):
        find_dataset(root, "wrods")


def test_another_run_sees_at_once_what_one_has_written(s3: Window, s3_root: str, scripted_recipe: MakeRecipe) -> None:
    root = location(s3_root)
    assert all_datasets(root) == []
    recipe = at(scripted_recipe, s3_root)
    asyncio.run(label(recipe))
    assert [one.manifest.version for one in all_datasets(root)] == [1]
    asyncio.run(label(recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"limit": 7})})))
    assert [one.manifest.version for one in all_datasets(root)] == [1, 2]
    assert estimate_labelling(recipe).to_send == 0


def test_a_removed_version_is_gone_and_the_manifest_goes_first(
    s3: Window, s3_root: str, scripted_recipe: MakeRecipe
) -> None:
    asyncio.run(label(at(scripted_recipe, s3_root)))
    root = location(s3_root)
    s3.requests.clear()
    remove(root, find_versions(root, "words/v001"))
    gone = [seen.key.rpartition("/")[2] for seen in s3.requests if seen.method == "DELETE"]
    assert gone[0] == FILE_NAME and len(gone) == 8  # four shards, card, recipe, and the lock
    assert catalog(root) == []


def test_a_version_that_no_teacher_made(s3: Window, s3_root: str, scripted_recipe: MakeRecipe) -> None:
    made = asyncio.run(label(at(scripted_recipe, s3_root))).dataset
    origin = Origin(made_by="filter", how="all", teacher=made.manifest.teacher, soft=made.manifest.soft)
    with new_version(location(s3_root), "copy", origin) as version:
        for batch in made.batches("train"):
            version.add("train", batch)
    assert version.dataset.problems() == []
    assert version.dataset.manifest.rows == {"train": made.manifest.rows["train"]}

    def breaks_off() -> None:
        with new_version(location(s3_root), "copy", origin) as version:
            version.add("train", next(made.batches("train")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks_off()
    assert [one.name for one in (location(s3_root) / "copy").iterdir()] == ["v001"]


@pytest.mark.slow
def test_a_student_learns_from_s3(s3: Window, s3_root: str, tiny_recipe: MakeRecipe) -> None:
    from stillhouse.student.training.train import distill

    recipe = at(tiny_recipe, s3_root)
    assert recipe.student is not None
    dataset = asyncio.run(label(recipe)).dataset
    card = distill(recipe, recipe.student, dataset)
    assert card.dataset == "words/v001"
    assert card.rows == dataset.manifest.rows["train"]


# ---------------------------------------------------------------------------------------------------------------- reading


def test_of_a_remote_file_only_what_is_asked_for_is_fetched(s3: Window, s3_root: str) -> None:
    rows = 40_000
    table = pa.table(
        {"id": [f"{row:08x}" for row in range(rows)], "text": [f"{row * 7919:064d}" for row in range(rows)]}
    )
    path = location(s3_root) / "rows.parquet"
    with atomic_file(path) as stream:
        pq.write_table(table, stream, row_group_size=rows // 8, compression="none", use_dictionary=False)
    size = path.stat().st_size
    assert size > 3_000_000
    s3.requests.clear()
    with open_parquet(path) as parquet:
        assert parquet.read_row_group(5, columns=["id"])["id"][0].as_py() == f"{rows // 8 * 5:08x}"
    assert s3.fetched() < size / 20
    s3.requests.clear()
    with open_parquet(path) as parquet:
        assert sum(batch.num_rows for batch in parquet.iter_batches(columns=["id"])) == rows
    assert s3.fetched() < size / 4


def test_a_remote_file_is_hashed_in_large_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = location(f"memory://{tmp_path.name}/large")
    assert isinstance(path, RemotePath)
    data = random.Random(0).randbytes((16 << 20) + 5)
    write_atomically(path, data)
    read, asked = locations.RangeFile.read, []

    def counted(file: locations.RangeFile, size: int | None = -1) -> bytes:
        found = read(file, size)
        asked.append(len(found))
        return found

    monkeypatch.setattr(locations.RangeFile, "read", counted)
    assert sha256_of_file(path) == hashlib.sha256(data).hexdigest()
    assert [size for size in asked if size] == [8 << 20, 8 << 20, 5]


def test_a_finished_shard_is_recognised_and_its_checksum_known_without_fetching_it(
    s3: Window, s3_root: str, scripted_recipe: MakeRecipe
) -> None:
    dataset = asyncio.run(label(at(scripted_recipe, s3_root))).dataset
    for entry in dataset.manifest.files:
        path = dataset.folder / entry.path
        assert isinstance(path, RemotePath)
        assert path.recorded_sha256() == sha256_of_file(path) == entry.sha256


# ---------------------------------------------------------------------------------------------------------------- writing


def test_a_large_file_appears_when_its_last_part_is_there(
    s3: Window, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "_PART", 5 << 20)
    path = location(s3_root) / "large"
    there: list[bool] = []

    def look(request: web.Request) -> None:
        if "partNumber" in request.query:
            there.append(any(seen.key.endswith("/large") and seen.method == "HEAD" for seen in s3.requests))
            assert path.url.rpartition("/")[2] not in [key.rpartition("/")[2] for key in s3.appeared()]

    s3.answer = look
    write_atomically(path, bytes(12 << 20))
    assert len(there) == 3
    assert path.stat().st_size == 12 << 20
    assert s3.appeared() == [path.url.removeprefix(f"s3://{BUCKET}/")]


def test_an_upload_that_breaks_off_leaves_nothing(s3: Window, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "_PART", 5 << 20)
    monkeypatch.setattr(service, "_FIRST_RETRY_SECONDS", 0.5)
    path = location(s3_root) / "large"
    s3.answer = lambda request: 503 if request.query.get("partNumber") == "2" else None
    with pytest.raises(StorageFailed, match=r"large cannot be reached: 503.*run again"):
        write_atomically(path, bytes(12 << 20))
    s3.answer = lambda _: None
    assert not path.exists()


# --------------------------------------------------------------------------------------------------------------- failures


def told(action: Callable[[], object]) -> str:
    """The message of a store's failure; no secret is in it or in what stands behind it."""
    with pytest.raises(StorageFailed) as caught:
        action()
    whole = "".join(traceback.format_exception(caught.value))
    assert SECRET not in whole and READER_SECRET not in whole
    return str(caught.value)


def test_what_a_store_refuses_is_said_in_words(
    s3: Window, s3_root: str, scripted_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = at(scripted_recipe, s3_root)
    nowhere = at(scripted_recipe, "s3://no-such-bucket/labels")
    assert "s3://no-such-bucket/labels/words: the bucket s3://no-such-bucket does not exist" in told(
        lambda: asyncio.run(label(nowhere))
    )
    assert "the bucket s3://no-such-bucket does not exist" in told(
        lambda: all_datasets(location("s3://no-such-bucket/labels"))
    )

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    forget_stores()
    assert all_datasets(location(s3_root)) == []
    assert f"{s3_root}/words/.lock: the store denies access: 403: Access Denied" in told(
        lambda: asyncio.run(label(recipe))
    )

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    forget_stores()
    assert "Check the credentials in the environment" in told(lambda: all_datasets(location(s3_root)))

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    forget_stores()
    assert "Set AWS_ACCESS_KEY_ID" in told(lambda: all_datasets(location(s3_root)))


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_store_that_is_away_is_told_with_its_endpoint(
    s3: Window, s3_root: str, scripted_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setattr(service, "_FIRST_RETRY_SECONDS", 0.3)
    s3.answer = lambda _: 503
    assert f"{s3_root} cannot be reached: 503" in told(lambda: all_datasets(location(s3_root)))
    s3.answer = lambda _: None
    monkeypatch.setenv(variable, "http://me:hidden@127.0.0.1:9")
    forget_stores()
    message = told(lambda: asyncio.run(label(at(scripted_recipe, s3_root))))
    assert f"{variable} (http://127.0.0.1:9)" in message
    assert "hidden" not in message


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    "message",
    [
        "cannot connect to http://user:s3cr%2Fet@127.0.0.1:1/labels",
        "the password s3cr%2Fet of user is wrong",
        "the password s3cr/et of user is wrong",
    ],
)
def test_a_password_in_the_endpoint_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, " http://user:s3cr%2Fet@127.0.0.1:1/ ")
    described = service._describe(OSError(message))
    assert "s3cr" not in described
    assert described.startswith(message.partition("s3cr")[0].removesuffix("user:"))


def test_a_password_of_another_url_is_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://[")  # no URL at all
    error = OSError("Failed to connect to proxy URL: http://me:hidden@proxy:3128")
    assert service._describe(error) == "Failed to connect to proxy URL: http://proxy:3128"


@pytest.mark.parametrize("status", [500, 503, 0])
def test_a_passing_failure_is_waited_out(s3: Window, s3_root: str, scripted_recipe: MakeRecipe, status: int) -> None:
    """Every third request fails, by its status or (0) by a connection that is torn."""
    seen: list[str] = []

    def every_third(request: web.Request) -> int | None:
        seen.append(request.path)
        return status if len(seen) % 3 == 0 else None

    s3.answer = every_third
    result = asyncio.run(label(at(scripted_recipe, s3_root)))
    s3.answer = lambda _: None
    assert len(seen) > 60
    assert result.dataset.problems() == []


def test_no_secret_is_taken_in_a_url(scripted_recipe: MakeRecipe) -> None:
    for root in ("s3://key:hidden@bucket/labels", "https://store/labels?sig=hidden", "simplecache::s3://bucket/labels"):
        with pytest.raises(RecipeError, match=r"dataset.root: the URL") as caught:
            at(scripted_recipe, root)
        assert "hidden" not in "".join(traceback.format_exception(caught.value))
        shown = CliRunner().invoke(app, ["datasets", "list", "--root", root])
        assert shown.exit_code == 2 and "hidden" not in shown.output


def test_a_journal_needs_a_disk(scripted_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="dataset.journal: it is a URL"):
        scripted_recipe(dataset={"root": "s3://bucket/labels", "name": "words", "journal": "s3://bucket/journals"})


def test_a_library_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # imported before
    forget_stores()
    with pytest.raises(UsageError, match=r"pip install 'stillhouse\[s3\]'"):
        all_datasets(location("s3://bucket/labels"))
    with pytest.raises(UsageError, match=r"s4://bucket/labels cannot be used as a store"):
        all_datasets(location("s4://bucket/labels"))


# ----------------------------------------------------------------------------------------------------------- other stores


class PlainFiles(LocalFileSystem):
    """Stands for a server of plain files (SFTP, SMB): what is written grows in its place."""

    protocol = "plain"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("plain://").strip("/")


@pytest.mark.parametrize("kind", ["memory", "plain", "file"])
def test_other_stores_hold_datasets_too(
    kind: str, tmp_path: Path, scripted_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, one_moment: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stillhouse.storage.lock._SETTLE", 0.05)
    fsspec.register_implementation("plain", PlainFiles, clobber=True)
    root = f"{kind}://{tmp_path}/there" if kind != "memory" else f"memory://{tmp_path.name}"
    dataset = asyncio.run(label(at(scripted_recipe, root))).dataset
    assert dataset.problems() == []
    assert contents(dataset.folder) == contents(asyncio.run(label(scripted_recipe())).dataset.folder)
    assert asyncio.run(label(at(scripted_recipe, root))).sent == 0
    assert find_dataset(location(root), "words") == dataset
    assert isinstance(dataset.folder, Path) is (kind == "file")


# ---------------------------------------------------------------------------------------------------------------- journal


def test_a_journal_that_begins_late_knows_what_was_spent(
    s3: Window, s3_root: str, scripted_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = at(scripted_recipe, s3_root)
    asyncio.run(label(recipe))
    manifest = dataset_folder(recipe.dataset) / "v001" / FILE_NAME
    known = read_manifest(manifest.parent)
    totals = known.totals.model_copy(update={"spent_usd": 2.5})
    write_manifest(manifest.parent, known.model_copy(update={"totals": totals}))
    write_atomically(dataset_folder(recipe.dataset) / "v002" / "recipe.yaml", b"begun: elsewhere")
    other = recipe_from(recipe.model_dump(mode="json", by_alias=True) | {"label": {"samples": 2}}, "test")
    other = other.model_copy(update={"dataset": other.dataset.model_copy(update={"journal": "another/place"})})
    assert estimate_labelling(other).spent_usd == 2.5
    with engine.open_job(other) as opened:
        assert opened._journal.spent() == 2.5
    assert "v002 was started with another journal" in caplog.text
    assert open_dataset(dataset_folder(recipe.dataset)).manifest == read_manifest(manifest.parent)
