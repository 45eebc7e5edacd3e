"""What never left this machine is the fault of the recipe, the key or the environment: no prompt is blamed for it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from stillhouse.dataset.store import dataset_folder
from stillhouse.errors import RecipeError, StillhouseError, TeacherRefused, TeacherUnavailable, UsageError
from stillhouse.exchange.push import push_dataset
from stillhouse.labelling.engine import label
from stillhouse.labelling.journal_view import JournalView
from stillhouse.recipe.label import LabelSettings, RunnerSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Message, Prompt
from stillhouse.storage import service
from stillhouse.teachers.base import AnswerSettings, Refusal, Request, open_teacher
from stillhouse.teachers.serving.openai_api import Endpoint, OpenAiApi, Timeouts
from tests.conftest import MakeRecipe
from tests.paths import ROOT
from tests.stand_in import RunningStandIn, running_stand_in

PROMPTS = [f"Name number {number}." for number in range(30)]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[RunningStandIn]:
    with running_stand_in() as running:
        yield running


def rejected_in_journal(recipe: Recipe) -> int:
    with closing(JournalView(dataset_folder(recipe.dataset))) as journal:
        return len(list(journal.ids()))


def stillhouse(command: str, recipe: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "stillhouse", command, str(recipe), *(["--no-flow"] if command == "label" else [])],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def without_base_url(path: Path) -> Path:
    """The recipe with the server's URL left to the environment."""
    recipe = yaml.safe_load(path.read_text())
    recipe["teacher"]["options"] = {}
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_url_and_a_key_with_white_space_around_them_are_meant_without_it(
    server: RunningStandIn, api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    path = without_base_url(recipe_file(api_recipe(server.base_url, PROMPTS[:2])))
    environment = {
        "OPENAI_BASE_URL": f" {server.base_url}/\r\n",
        "OPENAI_API_KEY": "0a1b/2c+3d==\n",
        "OPENAI_ORG_ID": "org-1\n",
    }
    done = stillhouse("label", path, **environment)
    assert done.returncode == 0, done.stderr
    assert server.stats.keys == {"Bearer 0a1b/2c+3d=="}


@pytest.mark.parametrize("command", ["plan", "label"])
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OPENAI_BASE_URL": "http://127.0.0.1:99999/v1"}, "OPENAI_BASE_URL is 'http://127.0.0.1:99999/v1': its port"),
        (
            {"OPENAI_BASE_URL": "http://127.0.0.1:9\n/v1"},
            r"OPENAI_BASE_URL is 'http://127.0.0.1:9\n/v1': it contains white",
        ),
        ({"OPENAI_BASE_URL": "http://me:s3cret@127.0.0.1:9/v1"}, "contains a user, a password or a key"),
        (
            {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "s3cret\ns3cret"},
            "OPENAI_API_KEY: the environment",
        ),
        (
            {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_ORG_ID": "org–s3cret"},
            "OPENAI_ORG_ID: the environment",
        ),
    ],
)
def test_what_no_request_can_be_made_of_ends_with_status_2_and_nothing_is_written(
    api_recipe: MakeRecipe,
    recipe_file: Callable[[Recipe], Path],
    tmp_path: Path,
    command: str,
    environment: dict[str, str],
    words: str,
) -> None:
    path = without_base_url(recipe_file(api_recipe("http://127.0.0.1:9/v1", PROMPTS)))
    done = stillhouse(command, path, **environment)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    ("url", "environment", "words"),
    [
        ("https://127.0.0.1:{port}/v1", {}, "use an http:// URL if the server has no TLS"),
        (
            "http://127.0.0.1:{port}/v1",
            {"ALL_PROXY": "socks5://me:s3cret@127.0.0.1:9"},
            "ALL_PROXY is 'socks5://127.0.0.1:9'",
        ),
        (
            "http://127.0.0.1:{port}/v1",
            {"HTTP_PROXY": "http://127.0.0.1:99999"},
            "HTTP_PROXY is 'http://127.0.0.1:99999'",
        ),
    ],
)
def test_a_run_that_cannot_send_ends_at_once_and_rejects_nobody(
    server: RunningStandIn,
    api_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    environment: dict[str, str],
    words: str,
) -> None:
    recipe = api_recipe(url.format(port=server.port), PROMPTS)
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(TeacherRefused, match=words):
            asyncio.run(label(recipe))
    assert rejected_in_journal(recipe) == 0
    assert server.stats.requests == 0
    again = api_recipe(server.base_url, PROMPTS)
    assert asyncio.run(label(again)).sent == len(PROMPTS)


def test_a_proxy_that_stays_away_is_named_where_the_run_ends(
    server: RunningStandIn, api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    recipe = api_recipe(server.base_url, PROMPTS, patience=0.3)
    with pytest.raises(TeacherUnavailable, match=r"the proxy http://127\.0\.0\.1:9 \(HTTP_PROXY\).*NO_PROXY.*patience"):
        asyncio.run(label(recipe))
    assert rejected_in_journal(recipe) == 0


@pytest.mark.parametrize("where", ["model", "extra_body", "response_format"])
def test_settings_that_json_cannot_carry_are_refused_beforehand(
    api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], where: str
) -> None:
    recipe = yaml.safe_load(recipe_file(api_recipe("http://127.0.0.1:9/v1", PROMPTS)).read_text())
    if where == "model":
        recipe["teacher"]["model"] = "half \ud83d"
    elif where == "extra_body":
        recipe["teacher"]["options"]["extra_body"] = {"seed": 2**70}
    else:
        recipe["label"]["response_format"] = {"minimum": 2**70}
    parsed = Recipe.model_validate(recipe)
    with pytest.raises(Exception, match=where) as told:
        open_teacher(parsed.teacher, parsed.label, 0)
    assert getattr(told.value, "exit_status", None) == 2


def test_a_prompt_that_json_cannot_carry_is_refused_for_itself_alone(
    server: RunningStandIn, api_recipe: MakeRecipe
) -> None:
    recipe = api_recipe(server.base_url, PROMPTS)
    teacher = open_teacher(recipe.teacher, recipe.label, 0)
    half = Prompt((Message("user", "half \ud83d of a pair"),))

    async def ask() -> object:
        try:
            (outcome,) = await teacher.answer(
                [Request(half, 0, AnswerSettings.from_label(teacher.identity, recipe.label))]
            )
            return outcome
        finally:
            await teacher.close()

    outcome = asyncio.run(ask())
    assert isinstance(outcome, Refusal)
    assert outcome.reason == "unencodable"
    assert server.stats.requests == 0


def test_a_query_of_the_base_url_stays_behind_the_path(api_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        result = asyncio.run(label(api_recipe(f"{server.base_url}?api-version=2024-10-21", PROMPTS[:2])))
        assert result.sent == 2
        assert server.stats.queries == {"api-version=2024-10-21"}
        assert result.dataset.manifest.teacher.endpoint == f"{server.base_url}?api-version=2024-10-21"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "http://127.0.0.1:99999/v1", "http://127.0.0.1:8000/v1/completions"]
)
def test_every_replica_of_a_vllm_teacher_is_checked_before_its_model_is_looked_for(url: str) -> None:
    options = {"base_urls": [" http://127.0.0.1:8000/v1\n", url]}
    settings = TeacherSettings(kind="vllm", model="no/such-model", options=options)
    with pytest.raises(RecipeError, match=r"^teacher\.options\.base_urls\[1\] is "):
        open_teacher(settings, LabelSettings(), 0)


@pytest.mark.parametrize(
    ("base_url", "key", "words"),
    [
        ("http://127.0.0.1:9/v1", "two\nlines", "the header Authorization contains"),
        ("http://127.0.0.1:9/v1", "a–dash", "the header Authorization contains"),
        ("http://127.0.0.1:99999/v1", "key", "its port"),
        ("http://a..b/v1", "key", "not a valid host name"),
        ("http://127.0.0.1:9\n/v1", "key", "white space"),
        ("ftp://127.0.0.1/v1", "key", "its scheme is ftp"),
    ],
)
def test_a_client_that_was_made_of_what_cannot_be_sent_raises_and_does_not_try_again(
    base_url: str, key: str, words: str
) -> None:
    async def ask() -> None:
        api = OpenAiApi(Endpoint(base_url, SecretStr(key), Timeouts()))
        try:
            await api.fetch("/chat/completions", {})
        finally:
            await api.close()

    with pytest.raises(StillhouseError, match=words) as told:
        asyncio.run(ask())
    assert key not in str(told.value).split() and "lines" not in str(told.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "http://127.0.0.1:99999", "http://[::1", "http://ho st:9000"])
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_endpoint_of_a_store_is_checked_before_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, variable: str, endpoint: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, endpoint)
    with pytest.raises(UsageError, match=f"{variable} is '"):
        service.call_store("s3://never-opened/labels", lambda fs, path: fs.ls(path), retry_seconds=0.1)


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:9", "http://127.0.0.1:99999", "http://[::1", "ftp://127.0.0.1", "http://me:s3cret@127.0.0.1"],
)
def test_the_endpoint_of_the_hub_is_checked_before_it_is_asked(
    server: RunningStandIn, api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_0a1b2c3d")
    dataset = asyncio.run(label(api_recipe(server.base_url, PROMPTS[:1]))).dataset
    with pytest.raises(UsageError, match="HF_ENDPOINT") as told:
        push_dataset(dataset, "me/colours", private=False)
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "ray://127.0.0.1:0", "127.0.0.1 :6379"])
def test_the_address_of_a_ray_cluster_is_checked_with_the_recipe(address: str) -> None:
    with pytest.raises(ValidationError, match="host:port, with a port from 1 to 65535"):
        RunnerSettings(kind="ray", address=address)


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://head:10001", "auto", "local", None])
def test_an_address_of_a_ray_cluster_is_taken_as_it_is(address: str | None) -> None:
    assert RunnerSettings(kind="ray", address=address).address == address
    assert RunnerSettings(kind="ray", address=f" {address}\n").address == str(address)
