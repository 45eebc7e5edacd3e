"""The API key is nowhere but in the request: no file, log, message, journal or Prefect database holds it.

Every file is searched byte by byte; what is compressed or cut into pages (Parquet, SQLite) is read as well. The server of
these tests says the key back to whoever sends it, as some do.
"""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tenacity import wait_fixed

from stillhouse.errors import TeacherUnavailable
from stillhouse.labelling import sender
from stillhouse.labelling.engine import label
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.journal_view import JournalView
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.rows import rows_by_prompt
from tests.stand_in import RunningStandIn, running_stand_in

KEYS = [
    "sk-live-4f9a1c77e2-do-not-show",
    "4f9a1c77e20b4d6f8a1c3e5d7f9b1a2c",  # hexadecimal, as many servers' keys are
    "Ab/cD+eF9/gH==",
    "q7xZ_9",
]
TELLING = [
    "Name a colour.",
    "Name a tree. !key500",
    "Name a bird. !key400*",
    "Name a fish. !key200*",
    "Name a town. !html*",
    "Name a river. !halfjson*",
    "Name a hill. !reset*",
]
STOPPING = "End. !key401"  # the shortest is asked last


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> str:
    """Keys of several forms: only the first is found by a pattern of what OpenAI's keys look like."""
    return str(request.param)


@pytest.fixture
def server(key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningStandIn]:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setattr(sender, "_BACKOFF", wait_fixed(0.01))
    with running_stand_in() as running:
        yield running
    assert running.stats.keys == {f"Bearer {key}"}  # it was sent, so it could have been kept


def holding(folder: Path, secret: str) -> list[str]:
    """Files in a folder that hold a secret, in their bytes or in what these say."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    in_bytes = [file for file in files if secret.encode() in file.read_bytes()]  # first: SQLite changes what it reads
    return sorted({str(file) for file in in_bytes} | {str(file) for file in files if secret in _read(file)})


def _read(file: Path) -> str:
    if file.suffix == ".parquet":
        return str(pq.read_table(file).to_pylist()) + str(pq.read_schema(file).metadata)
    if file.suffix in {".sqlite", ".db"}:
        with closing(sqlite3.connect(file)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return "".join(
                _text_of(value)
                for name in tables
                for row in database.execute(f'SELECT * FROM "{name}"')
                for value in row
            )
    return ""


def _text_of(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    key = KEYS[0]
    (tmp_path / "log.txt").write_text(f"Bearer {key}")
    pq.write_table(pa.table({"detail": [f"said {key}"]}), tmp_path / "rows.parquet", compression="zstd")
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database, database:
        database.execute("CREATE TABLE answers (body BLOB)")
        padding = "x" * 4050  # the key falls across two pages
        database.execute("INSERT INTO answers VALUES (?)", ((padding + key).encode(),))
    assert len(holding(tmp_path, key)) == 3
    assert holding(tmp_path, "another") == []


def test_no_file_of_a_dataset_and_no_journal_holds_the_key(
    key: str, server: RunningStandIn, api_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "delete", lambda *_: None)  # as a run that was stopped leaves it
    result = asyncio.run(label(api_recipe(server.base_url, TELLING)))
    with closing(JournalView(result.dataset.folder.parent)) as journal:
        assert len(list(journal.ids())) == len(TELLING)
    rejected = {prompt: row["detail"] for prompt, row in rows_by_prompt(result.dataset).items() if row["reason"]}
    assert list(rejected) == TELLING[2:]
    assert "***" in rejected[TELLING[2]] and "***" in rejected[TELLING[3]]  # what the server said is there, without it
    assert holding(tmp_path, key) == []


def test_no_exception_of_a_failed_run_holds_the_key(
    key: str, server: RunningStandIn, api_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = api_recipe(server.base_url, [*TELLING, STOPPING])
    with pytest.raises(TeacherUnavailable, match=r"returned 401: you came with Bearer \*\*\*") as told:
        asyncio.run(label(recipe))
    shown = "".join(traceback.format_exception(told.value)) + repr(told.value) + repr(recipe) + recipe.as_yaml()
    assert key not in shown
    assert holding(tmp_path, key) == []


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS[1:2], indirect=True)
@pytest.mark.parametrize(
    ("way", "prompts", "status"),
    [
        ("--no-flow", [*TELLING[:2], STOPPING + "*"], 1),
        ("--flow", TELLING[:3], 0),
        ("--flow", [*TELLING[:2], STOPPING + "*"], 1),
    ],
)
def test_no_command_and_no_prefect_shows_or_keeps_the_key(
    key: str,
    server: RunningStandIn,
    api_recipe: MakeRecipe,
    recipe_file: Callable[[Recipe], Path],
    tmp_path: Path,
    way: str,
    prompts: list[str],
    status: int,
) -> None:
    recipe = recipe_file(api_recipe(server.base_url, prompts))
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_LOGGING_LEVEL": "DEBUG"}
    for command in (["plan", str(recipe)], ["label", str(recipe), way, "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "stillhouse", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert key not in done.stdout + done.stderr
    assert done.returncode == status, done.stderr
    if status == 0:
        assert sum(json.loads(done.stdout)["rows"].values()) == 2
    assert (tmp_path / "prefect").exists() is (way == "--flow")
    assert holding(tmp_path, key) == []
